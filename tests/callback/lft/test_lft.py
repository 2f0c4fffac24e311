"FT and LFT in fastai's training loop"
import pytest
import torch
from fastai.callback.core import Callback, CancelStepException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientClip

from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.callback.lft import FTCallback, LFTCallback
from fsc_fastai.encode.transformation import ft_layers
from tests.learners import hue_learner, weights
from tests.methods.toys import METHODS

from ..episodes import Episodes, FirstEpisode, Seed, assert_same, build_model, gammas, learner, lft, start


@pytest.mark.parametrize('method', METHODS)
def test_every_method_learns_its_transformations(method):
    cb = lft(aux=True)
    learn = learner([cb], model=build_model(method=method))
    names = list(learn.model.state_dict())
    learn.fit(1)
    assert gammas(cb).isfinite().all() and (gammas(cb) - start(cb)).abs().max() > 0
    assert list(learn.model.state_dict()) == names and not ft_layers(learn.model)
    assert all(p.grad is None for p in cb.ft_parameters + cb.aux_parameters)


def test_ft_keeps_gamma_and_beta_and_is_off_in_validation():
    cb = FTCallback()
    learn, plain = (learner([*cbs, Seed()], lr=0.1) for cbs in ([cb], []))
    assert learn.validate()[0] == plain.validate()[0]
    for o in (learn, plain): o.fit(1)
    layers = cb.transformations.values()
    assert {p.unique().item() for layer in layers for p in layer.parameters()} == {0.3, 0.5}
    assert not torch.equal(*(next(iter(o.model.parameters())) for o in (learn, plain)))
    assert learn.validate()[0] == learn.validate()[0] and not ft_layers(learn.model)


def test_unseen_episodes_leave_no_running_statistics(plain_descent):
    learn = learner([lft([Episodes(seed=1)]), Seed()], n=1)
    other = learner([lft([Episodes(seed=2)]), Seed()], n=1)
    for o in (learn, other): o.fit(1)
    assert_same(weights(learn), weights(other))
    assert learn.model.training is False and not torch.equal(gammas(learn.lft), gammas(other.lft))


def test_guided_loss_is_what_lft_differentiates_whatever_the_order_of_callbacks(plain_descent):
    def fit(cbs):
        learn = learner([*cbs, Seed()], n=2)
        learn.fit(1)
        return weights(learn), gammas(learn.lft)
    a, b, alone = fit([lft(), LRPGuidedCallback()]), fit([LRPGuidedCallback(), lft()]), fit([lft()])
    assert_same(a[0], b[0], rtol=0, atol=0)
    assert torch.equal(a[1], b[1]) and not torch.allclose(a[1], alone[1])


def test_clipping_the_model_leaves_gamma_and_beta(plain_descent):
    a, b = (learner([lft(), Seed(), *cbs], n=1) for cbs in ([GradientClip(1e-6)], []))
    before = weights(a)
    for o in (a, b): o.fit(1)
    assert torch.equal(gammas(a.lft), gammas(b.lft))
    moved = [(v - before[k]).norm() for k, v in weights(a).items() if k.endswith('weight')]
    assert torch.stack(moved).norm() < 1e-7


def test_skipped_step_skips_gamma_and_beta_too(plain_descent):
    class Overflow(Callback):
        order = MixedPrecision.order
        def before_step(self):
            if self.iter == 0: raise CancelStepException
    a, b = lft(), lft()
    learner([a, Overflow(), FirstEpisode(1), Seed()], n=1).fit(1)
    learner([b, Overflow()], n=2).fit(1)
    assert torch.equal(gammas(a), start(a)) and not torch.equal(gammas(b), start(b))


def test_mistakes_are_named(tmp_path):
    learn = learner([lft()])
    for own in (learn.dls, learn.dls.train):
        learn.lft.domains = lft([own]).domains
        with pytest.raises(ValueError, match='domain 0 is the domain that the model is trained on'): learn.fit(1)
    with pytest.raises(ValueError, match='two callbacks'): learner([lft(), FTCallback()]).fit(1)
    with pytest.raises(ValueError, match='labels that carry the classes'): learner([lft(aux=True)], labels=None).fit(1)
    with pytest.raises(ValueError, match='aux knows 2 classes'): learner([lft(aux=2)]).fit(1)


def test_each_pass_draws_new_episodes_even_from_a_validation_loader(tmp_path, other_domain):
    cb = LFTCallback({'other': other_domain.valid})
    drawn = []
    class Watch(Callback):
        def after_batch(self):
            if self.training: drawn.append(cb.losses['unseen'].item())
    hue_learner(tmp_path/'hues', cbs=[cb, Watch()], lr=0.).fit(3)
    assert len(set(drawn)) == len(drawn) and cb.domains.passes['other'] >= 3


def test_domain_with_too_few_classes_is_named(tmp_path, other_domain):
    few = other_domain.train.new(n_way=7)
    with pytest.raises(ValueError, match='pseudo-unseen domain few: n_way=7, but .* has 6 classes'):
        hue_learner(tmp_path/'hues', cbs=LFTCallback({'few': few})).fit(1)
