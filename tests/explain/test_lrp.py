"LRP as an explainer: options, any model, errors"
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fsc_fastai.explain import (
    LRP,
    AlphaBeta,
    Composite,
    Epsilon,
    Gamma,
    GradientXInput,
    IntegratedGradients,
    Occlusion,
    ZBox,
    relevance_start,
    relevance_weights,
)
from fsc_fastai.explain.lrp import explained_scores, features_of, with_features
from fsc_fastai.explain.settings import Settings

from ..methods.toys import METHODS, feature_episode, feature_model, processed
from .nets import images, random_cnn


class Own(nn.Module):
    "A user's model: knows nothing of this library, its processed features are a tensor"
    def __init__(self): super().__init__(); self.fc = nn.Linear(6, 1)
    def classify(self, f_p): return self.fc(f_p)[..., 0]


def test_a_model_of_ones_own():
    model, f_p = Own(), torch.randn(4, 5, 6)
    R = LRP()(model, f_p)
    assert R.shape == f_p.shape
    assert_close(LRP(1e-9)(model, f_p).sum(2), relevance_start(model.classify(f_p), 1e-9), rtol=1e-3, atol=1e-4)


def test_start_from_logits():
    net, x = random_cnn(), images()
    assert_close(LRP(start='logits').relevance(net, x), LRP().relevance(net, x, net(x)))
    assert_close(LRP().relevance(net, x), LRP().relevance(net, x, relevance_start(net(x))))


def test_alpha_and_beta():
    net, x = random_cnn(), images()
    by_hand = LRP(composite={nn.Conv2d: AlphaBeta(2., 1.)})
    assert_close(LRP(alpha=2., beta=1.).relevance(net, x), by_hand.relevance(net, x))


def test_a_composite_with_and_without_base():
    whole = Composite({nn.Conv2d: AlphaBeta(2.)}, LRP().settings.composite)
    net, x = random_cnn(), images()
    assert_close(LRP(composite=whole).relevance(net, x), LRP(composite=Composite({nn.Conv2d: AlphaBeta(2.)})).relevance(net, x))


@pytest.mark.parametrize('method', METHODS)
def test_features_take_their_place(method):
    model, f_p = processed(method)
    scores = explained_scores(model, f_p)(features_of(f_p))
    if method != 'gnn': assert_close(scores, model.classify(f_p))
    assert_close(model.classify(with_features(f_p, features_of(f_p))), model.classify(f_p))


def test_a_graph_of_the_caller_is_left_alone():
    "Other parts of the processed features may belong to a training step"
    model = feature_model('can')
    support, y, query, _ = feature_episode()
    query.requires_grad_()
    f_p = model.process(support, y, query)
    LRP(engine=True)(model, f_p), LRP()(model, f_p)
    model.classify(f_p).sum().backward()
    assert query.grad.abs().sum() > 0


@pytest.mark.parametrize('make, message', [
    (lambda: AlphaBeta(-1, 5), 'wanted α ≥ 1 and β = α − 1'), (lambda: AlphaBeta(2., .5), 'β=0.5'),
    (lambda: LRP(alpha=.5), 'α=0.5'), (lambda: LRP(eps=-1.), 'eps=-1.0'), (lambda: Epsilon(float('nan')), 'eps=nan'),
    (lambda: Gamma(-.25), 'gamma=-0.25'), (lambda: ZBox(2., -2.), 'low=2.0, high=-2.0'),
    (lambda: LRP(start='logit'), "start='logit'"), (lambda: GradientXInput(start='odds'), "start='odds'"),
    (lambda: LRP(attention='none'), "attention='none': choose from"), (lambda: Settings(norm='folded'), "norm='folded'"),
    (lambda: Settings(form='r'), "form='r'"), (lambda: Composite({.5: Epsilon()}), '0.5 selects no layer'),
    (lambda: IntegratedGradients(0), 'at least 1'), (lambda: Occlusion(0), 'patch=0'),
    (lambda: relevance_weights(torch.ones(1, 1, 1), 'pixels'), "over='pixels'")])
def test_settings_that_make_no_sense_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message): make()
