"Controls of explanation-guided training"
import pytest
import torch

from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.callback.guided.lrp_controls import ChangedWeights, shuffled, shuffled_channels, unweighted
from fsc_fastai.explain.lrp import LRP
from fsc_fastai.explain.weights import relevance_weights
from tests.callback.episodes import Episodes, build_model, learner

W = torch.rand(4, 3, 8, 2, 2, generator=torch.Generator().manual_seed(0))


def test_each_pair_has_the_same_maps_of_other_channels():
    s = shuffled_channels(W)
    for pair, own in zip(s.flatten(0, 1), W.flatten(0, 1), strict=True):
        assert {tuple(m.flatten().tolist()) for m in pair} == {tuple(m.flatten().tolist()) for m in own}
    orders = {tuple((p[:, None] == o[None]).all((-2, -1)).int().argmax(1).tolist())
              for p, o in zip(s.flatten(0, 1), W.flatten(0, 1), strict=True)}
    assert len(orders) > 1 and tuple(range(8)) not in orders


def test_nodes_have_channels_too():
    nodes = W[..., 0, 0]
    assert torch.equal(shuffled_channels(nodes).sort(2).values, nodes.sort(2).values)


def test_random_weights_are_of_the_same_distribution():
    s = shuffled(W)
    assert s.shape == W.shape and torch.equal(s.flatten().sort().values, W.flatten().sort().values)
    assert (s != W).float().mean() > .9


@pytest.mark.parametrize('method', ['relation', 'gnn', 'can'])
def test_the_weights_that_are_there_are_those_of_the_paper(method):
    model = build_model(method=method)
    seen = []
    f_p = model.process(*features(model))
    ChangedWeights(lambda w: seen.append(w) or w)(model, f_p)
    torch.testing.assert_close(seen[0], relevance_weights(LRP()(model, f_p)))


def features(model):
    x_support, support_y, x_query, _ = Episodes(1).episode(0)
    f = model.encode(torch.cat([x_support, x_query]))
    return f[:len(x_support)], support_y, f[len(x_support):]


def losses(**kwargs):
    guided = LRPGuidedCallback(**kwargs)
    learner([guided]).fit(1)
    return torch.stack([torch.stack(step) for step in guided.losses])


def test_unchanged_weights_train_as_explanations_do():
    torch.testing.assert_close(losses(second_pass=ChangedWeights(lambda w: w)), losses())


def test_weights_of_one_count_the_loss_twice():
    plain, guided = losses(second_pass=unweighted).T
    torch.testing.assert_close(plain, guided)


@pytest.mark.parametrize('change', [shuffled, shuffled_channels])
def test_a_shuffle_changes_the_guided_loss_only_and_draws_nothing_that_is_missing_elsewhere(change):
    torch.manual_seed(0)
    changed = losses(second_pass=ChangedWeights(change))
    after = torch.rand(())
    torch.manual_seed(0)
    plain = losses()
    assert torch.equal(after, torch.rand(()))
    torch.testing.assert_close(changed[0, 0], plain[0, 0])
    assert abs(changed[0, 1] - plain[0, 1]) > 1e-6
