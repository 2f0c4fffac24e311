"First-order MAML: the gradient is that at the fine-tuned weights, and moves the weights as they were"
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.optimizer import SGD
from torch.testing import assert_close

from fsc_fastai.callback.lft import LFTCallback
from fsc_fastai.callback.maml import FirstOrderMAML, fine_tuned
from fsc_fastai.encode.encoder import create_encoder

from ..learners import hue_learner, hue_loaders, weights

SMALL = dict(epochs=2, bs=2, lr=.05)


class Spy(Callback):
    "Weights during the forward pass and at the step, with the gradient"
    order, run_valid = 50, False
    def copies(self): return {k: p.detach().clone() for k, p in self.model.named_parameters()}
    def before_batch(self): self.episode, self.mode = (*self.xb, *self.yb), self.model.training
    def after_pred(self): self.during = self.copies()
    def before_step(self): self.at_step, self.grads = self.copies(), {k: p.grad.clone() for k, p in self.model.named_parameters()}


def one_step(tmp_path, method='gnn', lr=.1, **kwargs):
    torch.manual_seed(0)
    learn = hue_learner(tmp_path/'hues', method, 'conv4', opt_func=SGD, wd=0., dls_kwargs=dict(n_episodes=1),
                        cbs=[FirstOrderMAML(**(SMALL | kwargs)), spy := Spy()])
    before = {k: p.detach().clone() for k, p in learn.model.named_parameters()}
    learn.fit(1, lr)
    return learn, spy, before


def test_last_block_is_tuned_for_the_episode_alone(tmp_path):
    learn, spy, before = one_step(tmp_path)
    tuned = {k for k, w in spy.during.items() if not torch.equal(w, before[k])}
    assert tuned == {k for k in before if k.startswith('encoder.body.stages.3.')}
    for k, w in spy.at_step.items(): assert torch.equal(w, before[k]), k
    after = dict(learn.model.named_parameters())
    for k, w in before.items(): assert_close(after[k].detach(), w - .1*spy.grads[k])


def test_gradient_is_that_at_the_tuned_weights(tmp_path):
    learn, spy, before = one_step(tmp_path, lr=0.)
    with torch.no_grad():
        for k, p in learn.model.named_parameters(): p.copy_(spy.during[k])
    *xb, y = spy.episode
    learn.model.train()
    learn.model.zero_grad()
    learn.loss_func(learn.model(*xb), y).backward()
    for k, p in learn.model.named_parameters(): assert_close(p.grad, spy.grads[k], rtol=1e-4, atol=1e-6, msg=k)


@pytest.mark.parametrize('classifier', [False, True])
def test_fine_tuning_is_adam_on_the_support(classifier):
    encoder = create_encoder('conv4', img_size=16).train()
    names = [k for k, _ in encoder.named_parameters() if 'stages.3' in k]
    x, y = torch.randn(6, 3, 16, 16), torch.arange(3).repeat(2)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    torch.manual_seed(1)
    tuned = fine_tuned(encoder, names, x, y, 3, 4, .01, classifier)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    # the same by hand, on the encoder itself
    torch.manual_seed(1)
    weight = torch.zeros(3, 64, requires_grad=True)
    own = [p for k, p in encoder.named_parameters() if k in names] + [weight]*classifier
    opt = torch.optim.Adam(own, .01)
    for _ in range(3):
        order = torch.randperm(6)
        for rows in (order[:4], order[4:]):
            z = encoder(x[rows]).mean((2, 3))
            opt.zero_grad()
            F.cross_entropy(z @ weight.T if classifier else z, y[rows]).backward()
            opt.step()
    for k in names: assert_close(tuned[k], encoder.get_parameter(k).detach(), msg=k)


def test_an_error_in_a_step_leaves_the_weights(tmp_path):
    learn, _, _ = one_step(tmp_path)
    before = weights(learn)
    class Fails(Callback):
        def after_pred(self): raise RuntimeError('broken')
    with pytest.raises(RuntimeError, match='broken'): learn.fit(1, cbs=Fails())
    for k, p in learn.model.named_parameters(): assert torch.equal(p, before[k])


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match='LFTCallback.*FTCallback'):
        hue_learner(tmp_path/'hues', cbs=[FirstOrderMAML(), LFTCallback(hue_loaders(tmp_path/'hues', seed=1))]).fit(1)
    with pytest.raises(ValueError, match=r'no weights in nothing.*layers=\[…\].*stages'):
        hue_learner(tmp_path/'hues', cbs=FirstOrderMAML(layers=['nothing'])).fit(1)
