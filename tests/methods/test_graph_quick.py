"The quick graph network gives the scores of the graph network, one graph for each query"
import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fsc_fastai.adapt.head import DeployedHead, GraphHead, OneQueryHead, deployed_head
from fsc_fastai.encode.encoder import Encoder
from fsc_fastai.methods import GNNNet, graph_quick
from fsc_fastai.methods.graph import GraphNet
from fsc_fastai.methods.graph_quick import QuickGraph

C, SIDE = 6, 3
SHOTS = [(1, 1), (1, 1, 1), (3, 3), (4, 1, 2), (12, 1, 3), (2,) * 7]
close = partial(assert_close, rtol=1e-10, atol=1e-11)


def random_weights(module):
    "In double precision, with values of either sign everywhere"
    for p in module.double().parameters(): nn.init.normal_(p, std=.5)
    return module.eval()


def graph_net(n_in=5, n_out=3, width=6, n_hidden=2):
    "With fixed statistics"
    torch.manual_seed(0)
    net = random_weights(GraphNet(n_in, n_out, width, n_hidden))
    for norm in net.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean = torch.randn(norm.num_features, dtype=torch.double)
            norm.running_var = torch.rand(norm.num_features, dtype=torch.double) + .1
    return net


def nodes(n, n_in=5, seed=0): return torch.randn(n, n_in, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def by_the_network(net, support, query):
    "Scores of the last node of each graph"
    return net(torch.cat([support.expand(len(query), -1, -1), query[:, None]], 1))[0][:, -1].detach()


def gnn_net(n_way, cls=GNNNet, **kwargs):
    torch.manual_seed(0)
    return random_weights(cls(Encoder(nn.Identity(), SIDE, C), n_way, n_features=7, width=10, **kwargs))


def maps(n, seed=0): return torch.randn(n, C, SIDE, SIDE, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def fitted(shots, cls=GNNNet, **kwargs):
    "A head and some queries"
    member = torch.eye(len(shots), dtype=torch.double).repeat_interleave(torch.tensor(shots), 0)
    return deployed_head(gnn_net(len(shots), cls, **kwargs)).fit(maps(sum(shots)), member), maps(9, 1)


@pytest.mark.parametrize('n_query', [1, 8])
@pytest.mark.parametrize('n_support', [1, 2, 3, 7])
@pytest.mark.parametrize('n_hidden', range(5))
def test_the_scores_are_those_of_the_network(n_hidden, n_support, n_query):
    net, support, query = graph_net(n_hidden=n_hidden), nodes(n_support), nodes(n_query, seed=1)
    close(QuickGraph(net, support).classify(query), by_the_network(net, support, query))


@pytest.mark.parametrize('width', [2, 3, 17])
def test_any_width(width):
    net = graph_net(11, 2, width, 3)
    close(QuickGraph(net, nodes(4, 11)).classify(nodes(5, 11, 1)), by_the_network(net, nodes(4, 11), nodes(5, 11, 1)))


@pytest.mark.parametrize('pairs', [1, 2, 14, 15, 16, 30, 31, 1000])
def test_some_pairs_at_a_time(pairs, monkeypatch):
    "6 support samples are 15 pairs: a part of a graph at a time, just one graph, or several"
    monkeypatch.setattr(graph_quick, 'PAIRS_ON_CPU', pairs)
    net, support, query = graph_net(n_hidden=3), nodes(6), nodes(5, seed=1)
    close(QuickGraph(net, support).classify(query), by_the_network(net, support, query))


def test_what_was_prepared_serves_many_times():
    quick, query = QuickGraph(graph_net(), nodes(4)), nodes(6, seed=1)
    together = quick.classify(query)
    assert torch.equal(quick.classify(query), together)
    close(torch.cat([quick.classify(q[None]) for q in query]), together)
    assert not together.requires_grad


@pytest.mark.parametrize('shots', SHOTS, ids=str)
def test_a_deployed_head_uses_it(shots):
    head, query = fitted(shots)
    assert type(head.quick) is QuickGraph and head.quick.serves(query)
    scores = head(query)
    close(scores, DeployedHead.forward(head, query))
    close(torch.cat([head(q[None]) for q in query]), scores)
    assert head(query[:0]).shape == (0, len(shots))


def test_a_head_splits_its_queries_anywhere(monkeypatch):
    head, query = fitted((2, 2))
    together = head(query)
    for n in (1, 4, 8, 9):
        monkeypatch.setattr(GraphHead, 'chunk', lambda self, n=n: n)
        close(head(query), together)


def test_another_fit_and_another_precision():
    head, query = fitted((2, 2, 2))
    first = head(query)
    member = torch.eye(3, dtype=torch.double)
    head.fit(maps(3, 5), member)
    assert not torch.allclose(head(query), first)
    close(head(query), DeployedHead.forward(head, query))
    single = copy.deepcopy(head).float()
    assert single(query.float()).dtype == torch.float32
    assert_close(single(query.float()).double(), head(query), rtol=1e-3, atol=1e-4)
    close(single.double()(query), DeployedHead.forward(single, query))
    close(head(query), DeployedHead.forward(head, query))  # the copy took nothing along
    assert not any('quick' in name for name in head.state_dict())


def test_gradients_pass_a_deployed_head():
    head, f = fitted((2, 2))
    f.requires_grad_()
    found, = torch.autograd.grad(head(f).square().sum(), f)
    wanted, = torch.autograd.grad(DeployedHead.forward(head, f).square().sum(), f)
    assert found.any()
    close(found, wanted)


class Classifies(GNNNet):
    def classify(self, f_p): return -super().classify(f_p)


class Traces(GNNNet):
    def classify_with_trace(self, f_p):
        scores, trace = super().classify_with_trace(f_p)
        return -scores, trace


class Processes(GNNNet):
    def process(self, f_support, support_y, f_query): return super().process(-f_support, support_y, -f_query)


class Whole(GNNNet):
    def forward_head(self, *args): return -super().forward_head(*args)


@pytest.mark.parametrize('cls', [Classifies, Traces])
def test_a_way_of_classifying_of_one_s_own(cls):
    head, query = fitted((2, 1, 2), cls)
    assert head.quick is None
    close(head(query), -fitted((2, 1, 2))[0](query))


@pytest.mark.parametrize('cls', [Processes, Whole])
def test_graphs_of_one_s_own_hold_one_query_each(cls):
    head, query = fitted((2, 1, 2), cls)
    assert type(head) is OneQueryHead and 'tells 3 classes apart, found 4' in head.problem(4)
    scores = head(query)
    assert scores.shape == (9, 3)
    for q, row in zip(query, scores): close(head.model.forward_head(head.support, head.member, q[None])[0], row)


def test_where_it_is_not_the_network_s_own_arithmetic_nothing_changes():
    class Mine(GraphNet):
        def forward(self, x):
            scores, trace = super().forward(x)
            return -scores, trace
    model = gnn_net(2)
    assert model.quick(nodes(4, 9)) is None  # statistics are still those of the batch
    model.gnn.__class__ = Mine
    head = deployed_head(model).fit(maps(4), torch.eye(2, dtype=torch.double).repeat(2, 1))
    assert head.quick is None
    close(head(maps(3, 1)), DeployedHead.forward(head, maps(3, 1)))
    head, query = fitted((2, 2))
    head.train()
    assert not head.quick.serves(query)
    head.eval()
    with torch.autocast('cpu', torch.bfloat16): assert not head.quick.serves(query)
