"The guided pass of a cross attention network as its authors' code has it"
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fsc_fastai.callback.guided import LRPGuidedCallback, PublishedCANPass
from fsc_fastai.explain import LRP
from fsc_fastai.methods.cross_attention import Attended
from tests.golden_files import load, recorded

from ...methods.test_golden import cross_attention_net
from ...methods.toys import feature_model
from ..episodes import BFloat16, Episodes, StepLosses, learner
from .test_lrp_guided import few_shot, untouched

EPS = 1e-3


def by_hand(query, support, scale=7.):
    "Scores at every position of one query for all classes: query `(n_way, C, H, W)`, support `(n_way, C, H, W)`"
    n_way, n_channels, height, width = query.shape
    q_mean, p = ([m[k].mean((1, 2)) / m[k].mean((1, 2)).norm() for k in range(n_way)] for m in (query, support))
    cosines = [(q_mean[k] * p[k]).sum() for k in range(n_way)]
    P = torch.softmax(scale * torch.stack(cosines), 0)
    rows = []
    for k in range(n_way):
        R_class = torch.log((n_way - 1) * (P[k] + EPS) / (1 - P[k] + EPS))
        R_channel = q_mean[k] * p[k] * R_class / (cosines[k] + EPS * cosines[k].sign())
        total = query[k].sum((1, 2))
        share = R_channel / (total + torch.where(total < 0, -EPS, EPS))
        w_channel = 1 + R_channel / R_channel.abs().max()
        for i in range(height):
            for j in range(width):
                here = query[k, :, i, j]
                w_here = 1 + here * share / (here * share).abs().max()
                rows.append(scale * (w_channel * w_here * p[k] * here / here.norm()).sum())
    return torch.stack(rows).view(n_way, height, width)


def attended(seed=0, n_query=2, n_way=3, n_channels=4, size=2):
    g = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n_query, n_way, n_channels, size, size, generator=g, dtype=torch.float64) for _ in range(2)]
    return Attended(*parts)


@recorded('can_*.npz')
def test_relevances_are_the_recorded_ones(path):
    arrays, weights = load(path)
    model = cross_attention_net(arrays, weights)
    f_p = model.process(arrays['support'], arrays['support_y'], arrays['query'])
    of_terms, of_query = PublishedCANPass(float(arrays['eps'])).relevance(model, f_p)
    assert_close(of_terms, arrays['relevance_channel'], rtol=1e-3, atol=1e-4)
    assert_close(of_query, arrays['relevance_attended_query'], rtol=1e-3, atol=1e-4)
    assert_close(of_query, LRP(float(arrays['eps']))(model, f_p), rtol=1e-5, atol=1e-5)


def test_scores_and_their_gradient_by_hand():
    model, f_p = feature_model('can').double(), attended()
    f_p.query.requires_grad_(), f_p.support.requires_grad_()
    found = PublishedCANPass(EPS)(model, f_p)
    expected = torch.stack([by_hand(q, s) for q, s in zip(f_p.query, f_p.support, strict=True)])
    assert_close(found, expected)
    up = torch.randn_like(found)
    for x in (f_p.query, f_p.support):
        through, wanted = (torch.autograd.grad((y * up).sum(), x, retain_graph=True)[0] for y in (found, expected))
        assert_close(through, wanted)


def test_the_weights_are_learned_through():
    "The gradient by finite differences, which constant weights would miss"
    model, f_p = feature_model('can').double(), attended(seed=1)
    scores = lambda query: PublishedCANPass(EPS)(model, Attended(f_p.support, query))
    assert torch.autograd.gradcheck(scores, f_p.query.requires_grad_())
    assert torch.autograd.gradgradcheck(scores, f_p.query)  # as learned transformations need it


def test_dead_channels_leave_gradients_finite():
    model, f_p = feature_model('can'), attended()
    f_p = Attended(f_p.support.float(), f_p.query.float())
    f_p.query[:, :, 1] = 0
    f_p.support[:, 0] = 0
    f_p.query.requires_grad_()
    scores = PublishedCANPass()(model, f_p)
    assert scores.isfinite().all() and torch.autograd.grad(scores.sum(), f_p.query)[0].isfinite().all()


def test_one_step_by_hand():
    "Global cross entropy + half that of the weighted scores, and no plain term of the episode"
    support, y, query, query_y = Episodes().episode(0)
    model, twin = few_shot('can'), few_shot('can')
    f = twin.encode(torch.cat([support, query]))
    f_p = twin.process(f[:len(support)], y, f[len(support):])
    of_all, labels = twin.training_output(f_p)[1], query_y.as_subclass(torch.Tensor)
    true = of_all[torch.arange(6), labels]
    positions = lambda target: target[:, None, None].expand(-1, *true.shape[2:])
    guided = torch.stack([by_hand(q, s) for q, s in zip(f_p.query, f_p.support, strict=True)])
    loss = F.cross_entropy(true, positions(torch.tensor(query_y.classes)[labels])) + .5*F.cross_entropy(guided, positions(labels))
    loss.backward()
    learn = learner([LRPGuidedCallback(second_pass=PublishedCANPass(EPS)), losses := StepLosses()], 1, model)
    learn.fit(1, 1., wd=0.)
    assert_close(losses.seen[0], loss.detach())
    fresh = few_shot('can')
    for name, p in twin.named_parameters():
        before, after = fresh.get_parameter(name), model.get_parameter(name)
        assert_close(after, before - (0. if p.grad is None else p.grad), rtol=1e-6, atol=1e-8)
    assert untouched(model)


def test_it_weights_otherwise_than_the_paper():
    losses = []
    for kwargs in ({}, {'second_pass': PublishedCANPass()}):
        learner([cb := LRPGuidedCallback(**kwargs)], 1, few_shot('can')).fit(1)
        losses.append(cb.losses[0])
    assert_close(losses[0][0], losses[1][0])
    assert not torch.isclose(losses[0][1], losses[1][1])


@pytest.mark.parametrize('n_classes', [0, 6])
def test_without_a_global_classifier_too(n_classes):
    learner([cb := LRPGuidedCallback(second_pass=PublishedCANPass())], model=few_shot('can', n_classes=n_classes)).fit(1)
    assert len(cb.losses) == 3 and all(loss.isfinite() for pair in cb.losses for loss in pair)


def test_single_precision_under_autocast():
    class Seen(PublishedCANPass):
        def __call__(self, model, f_p):
            scores = super().__call__(model, f_p)
            seen.append(scores.dtype)
            return scores
    seen = []
    single = few_shot('can', dtype=torch.float32)
    learner([cb := LRPGuidedCallback(second_pass=Seen()), BFloat16()], model=single).fit(1)
    assert set(seen) == {torch.float32} and all(loss.isfinite() for pair in cb.losses for loss in pair)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match='either it or an explainer'):
        LRPGuidedCallback(explainer=LRP(), second_pass=PublishedCANPass())
    learn = learner([LRPGuidedCallback(second_pass=PublishedCANPass())])
    with pytest.raises(TypeError, match='guides a CrossAttentionNet, found RelationNet'): learn.fit(1)
    assert untouched(learn.model)
