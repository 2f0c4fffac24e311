import pytest
import torch
from torch import nn

from fsc_fastai.adapt.graph_head import EDGES
from fsc_fastai.methods import FewShotModel
from fsc_fastai.methods.base import one_hot
from fsc_fastai.methods.head import PAIRS, Head, free_norms, head_for

from ..methods.toys import METHODS, feature_model


def maps(n, seed=0): return torch.randn(n, 6, 5, 5, generator=torch.Generator().manual_seed(seed)).abs()


def labels(*shots): return one_hot(torch.arange(len(shots)).repeat_interleave(torch.tensor(shots)))


@pytest.mark.parametrize('method', METHODS)
def test_a_query_scores_the_same_alone_in_a_batch_and_in_another_order(method):
    head = feature_model(method).head(maps(15), labels(3, 3, 3, 3, 3), 'support')
    query = maps(40, 1)
    together = head(query)
    torch.testing.assert_close(torch.cat([head(q[None]) for q in query]), together, rtol=1e-5, atol=1e-6)
    order = torch.randperm(40)
    torch.testing.assert_close(head(query[order]), together[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('method', ['relation', 'gnn'])
def test_the_published_scores_do_depend_on_the_batch(method):
    model = feature_model(method)
    y, query = torch.arange(5).repeat_interleave(3), maps(10, 1)
    together = model.forward_head(maps(15), y, query)
    assert not torch.allclose(model.forward_head(maps(15), y, query[:1]), together[:1], atol=1e-3)


@pytest.mark.parametrize('method', ['can', 'proto', 'matching'])
def test_methods_without_batch_statistics_score_as_published(method):
    model, query = feature_model(method), maps(7, 1)
    head = model.head(statistics='support').fit(maps(10), labels(1, 2, 3, 4))
    wanted = model.forward_head(maps(10), labels(1, 2, 3, 4), query)
    torch.testing.assert_close(head(query), wanted, rtol=1e-5, atol=1e-5)


def test_relation_statistics_are_those_of_samples_beside_prototypes_without_them():
    model, f, member = feature_model('relation'), maps(5), labels(1, 2, 2)
    head = model.head(f, member, 'support')
    pairs = []
    for i in range(5):
        for way in range(3):
            others = [j for j in range(5) if member[j, way] and j != i] or [i]
            pairs.append(torch.cat([f[others].mean(0), f[i]]))
    seen = model.relation.layer1.conv(torch.stack(pairs))
    norm = head.model.relation.layer1.norm
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3), correction=0))


def test_graph_statistics_never_show_a_sample_its_own_label():
    "A graph whose query carried its label would normalise other label features than real queries meet"
    head = feature_model('gnn').head(maps(5), labels(1, 1, 1, 1, 1), 'support')
    seen = []
    head.model.gnn.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    head.fit(maps(5), labels(1, 1, 1, 1, 1))
    nodes = seen[0]
    assert nodes.shape[:2] == (5, 5)
    assert (nodes[:, -1, -5:] == 0).all() and (nodes[:, :-1, -5:].sum(-1) == 1).all()
    # each sample is the query of one graph
    assert len({tuple(o.tolist()) for o in nodes[:, -1, :4]}) == 5


@pytest.mark.parametrize('method', METHODS)
def test_any_order_and_balance_of_the_support_will_do(method):
    model, f, member = feature_model(method), maps(25), labels(1, 2, 12, 4, 6)
    head = model.head(f, member, 'support')
    scores = head(maps(3, 1))
    assert scores.shape == (3, 5) and scores.isfinite().all()
    if method != 'gnn':  # it keeps means of neighbours where a class has many samples
        order = torch.randperm(25)
        torch.testing.assert_close(model.head(f[order], member[order], 'support')(maps(3, 1)), scores, rtol=1e-4, atol=1e-5)


def test_hundreds_of_samples_stay_within_the_memory_limits():
    member = labels(*[210] * 5)
    graph = feature_model('gnn').head(maps(1050), member, 'support')
    nodes = graph.member.shape[0] + 1
    assert nodes == 51 and graph.chunk() * nodes**2 <= EDGES
    # means stand for the samples: the mean of the means is still that of the class
    torch.testing.assert_close(graph.support[:10].mean(0), maps(1050)[:210].mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    relation, most = feature_model('relation').head(statistics='support'), []
    relation.model.relation.layer1.norm.register_forward_pre_hook(lambda m, args: most.append(args[0].shape[0]))
    relation.fit(maps(1050), member)(maps(300, 1))
    assert max(most) <= PAIRS


@pytest.mark.parametrize('method', ['relation', 'can', 'proto', 'matching'])
def test_more_ways_than_in_training(method):
    head = feature_model(method, n_way=5).head(maps(24), labels(*[2] * 12), 'support')
    assert head(maps(3, 1)).shape == (3, 12)


def test_a_graph_network_says_that_it_can_not_do_more_ways():
    head = feature_model('gnn').head(statistics='support')
    assert 'tells 5 classes apart, found 6' in head.problem(6) and head.problem(5) is None


def test_the_model_stays_as_it_is():
    model = feature_model('relation').train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.head(statistics='support').fit(maps(6), labels(2, 2, 2))(maps(2))
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(norm.running_mean is None for norm in free_norms(model).values())
    assert before.keys() == model.state_dict().keys() and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Centred(FewShotModel):
    "A method that nobody has told the heads about, with a batch norm of the published kind"
    def __init__(self, encoder):
        super().__init__(encoder)
        self.norm = nn.BatchNorm2d(6, track_running_stats=False)

    def process(self, f_support, support_y, f_query): return self.norm(f_query), one_hot(support_y), self.norm(f_support)
    def classify(self, f_p):
        query, member, support = f_p
        return query.flatten(1) @ support.flatten(1).T @ member


def test_a_method_of_ones_own_gets_fixed_statistics_too():
    head = Centred(nn.Identity()).eval().head(statistics='support').fit(maps(6), labels(3, 3))
    query = maps(4, 1)
    torch.testing.assert_close(torch.cat([head(q[None]) for q in query]), head(query), rtol=1e-4, atol=1e-4)


def test_a_head_of_one_s_own_serves_its_method_where_it_says_so():
    class Own(Centred): "Another method, so that the head of it serves nobody else"
    model, y, query = Own(nn.Identity()).eval(), torch.arange(2).repeat_interleave(3), maps(4, 1)

    @head_for(Own)
    class Doubled(Head):
        def scores(self, f_query): return 2 * super().scores(f_query)

    torch.testing.assert_close(model.head(maps(6), y)(query), 2 * model.forward_head(maps(6), y, query))
    model.process = lambda *args: Centred.process(model, *args)
    torch.testing.assert_close(model.head(maps(6), y)(query), model.forward_head(maps(6), y, query))


def test_statistics_are_of_the_batch_or_of_the_support():
    with pytest.raises(ValueError, match="statistics='running': choose from"): feature_model('can').head(statistics='running')


@pytest.mark.parametrize('method', METHODS)
def test_by_statistics_of_the_batch_a_head_is_the_method(method):
    model, y, query = feature_model(method), torch.arange(5).repeat_interleave(3), maps(10, 1)
    head = model.head()
    wanted = model.forward_head(maps(15), y, query)
    torch.testing.assert_close(head.fit(maps(15), y)(query), wanted)
    torch.testing.assert_close(head.fit(head.compact(maps(15)), y)(head.compact(query)), wanted, rtol=1e-4, atol=1e-5)
    assert head.model is model
