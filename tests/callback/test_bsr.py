"The spectral penalty, its loss and its gradient; in pre-training and among episodes"
import pytest
import torch.nn.functional as F
from fastai.callback.core import Callback
from torch.testing import assert_close

from fsc_fastai.callback.bsr import BSRCallback, spectral_penalty
from fsc_fastai.learner.pretrain import classification_learner

from ..golden_files import load, recorded, same
from ..learners import hue_learner, silent
from .golden import OPS


@recorded('bsr_loss_*.npz')
def test_loss(path):
    arrays, _ = load(path)
    feature, weight, bias = (arrays[k].requires_grad_() for k in ('feature', 'weight', 'bias'))
    scores = F.linear(feature, weight, bias)
    loss = F.cross_entropy(scores, arrays['y']) + arrays['lamda']*spectral_penalty(feature)
    loss.backward()
    same(scores, arrays['scores'], OPS)
    same(spectral_penalty(feature), arrays['spectral'], OPS)
    same(spectral_penalty(feature), arrays['singular_values'].square().sum(), OPS)
    same(loss, arrays['loss'], OPS)
    for p, name in ((feature, 'feature'), (weight, 'weight'), (bias, 'bias')): same(p.grad, arrays[f'grad_{name}'], OPS, name)


class Losses(Callback):
    "The loss before and after BSR has added its own, and the features that it is of"
    order, run_valid = BSRCallback.order + 1, False
    def before_batch(self): self.handle = self.model.encoder.register_forward_hook(lambda m, a, maps: setattr(self, 'maps', maps))
    def after_loss(self):
        self.handle.remove()
        self.total, self.own = self.learn.loss_grad.detach(), self.loss_func(self.pred, *self.yb).detach()
        self.penalty = spectral_penalty(self.maps.mean((2, 3))).detach()


@pytest.mark.parametrize('images', [None, 16])
@pytest.mark.parametrize('kind', ['episodes', 'images'])
def test_callback_adds_it(tmp_path, kind, images):
    learn = hue_learner(tmp_path/'hues', 'relation', arch='conv4', dls_kwargs=dict(n_episodes=1))
    if kind == 'images': learn = silent(classification_learner(learn.dls, learn.model.encoder, bs=24))
    learn.add_cbs([BSRCallback(.1, images), seen := Losses()])
    learn.fit(1)
    share = 1 if images is None else images/len(seen.maps)
    assert_close(seen.total, seen.own + .1*share*seen.penalty)
    assert seen.penalty > 0 and not any(m._forward_hooks for m in learn.model.modules())


def test_bad_number():
    with pytest.raises(ValueError, match=r'images=0.*at least 1'): BSRCallback(images=0)
