"torch's fused AdamW steps as fastai's Adam does, and takes its state"
from functools import partial

import pytest
import torch
from fastai.optimizer import Adam
from torch import nn
from torch.testing import assert_close

from fsc_fastai.learner.core import fsc_learner
from fsc_fastai.learner.fused_adam import FusedAdam, default_optimizer
from fsc_fastai.learner.pretrain import classification_learner
from tests.gpu import GPU
from tests.learners import hue_learner, hue_loaders, weights

CLOSE = dict(rtol=1e-8, atol=1e-10)


def net(): return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)).double()


def stepped(opt_func, schedule, state=None, steps=6, groups=2, device='cpu'):
    "Weights after some steps, with the hyper-parameters that `schedule` sets before each, and the optimizer"
    torch.manual_seed(0)
    model = net().to(device)
    opt = opt_func([[*model[:2].parameters()], [*model[2:].parameters()]][:groups], lr=.1)
    for p in model[1].parameters(): opt.state[p] |= dict(do_wd=False, force_train=True)
    if state is not None: opt.load_state_dict(state)
    for i in range(steps):
        schedule(opt, i)
        model(torch.randn(8, 4).double().to(device)).pow(3).mean().backward()
        opt.step()
        opt.zero_grad()
    return [p.detach() for p in model.parameters()], opt


def one_cycle(opt, i): opt.set_hypers(lr=[.01 * (i + 1), .1 / (i + 1)], mom=.95 - .02 * i, wd=.1)
def half_frozen(opt, i): opt.freeze_to(1 if i < 3 else 0)


@pytest.mark.parametrize('kwargs', [{}, dict(wd=.3), dict(wd=.3, decouple_wd=False), dict(mom=.5, sqr_mom=.9, eps=.1)])
@pytest.mark.parametrize('schedule', [lambda opt, i: None, one_cycle, half_frozen])
def test_steps_as_fastai_does(schedule, kwargs):
    ours, theirs = (stepped(partial(f, **kwargs), schedule) for f in (FusedAdam, Adam))
    before = [p.detach() for p in (torch.manual_seed(0), net())[1].parameters()]
    assert max((a - b).abs().max() for a, b in zip(ours[0], before, strict=True)) > 1e-2
    for a, b in zip(ours[0], theirs[0], strict=True): assert_close(a, b, **CLOSE)
    assert ours[1].hypers == theirs[1].hypers


@pytest.mark.gpu
@pytest.mark.parametrize('opt_func', [Adam, FusedAdam])
@pytest.mark.parametrize('schedule', [one_cycle, half_frozen])
def test_steps_on_a_gpu_as_on_the_cpu(schedule, opt_func):
    (ours, opt), (theirs, expected) = stepped(opt_func, schedule, device=GPU), stepped(Adam, schedule)
    for a, b in zip(ours, theirs, strict=True): assert_close(a.cpu(), b, **CLOSE)
    found = stepped(Adam, schedule, state=opt.state_dict())[0]  # what the GPU has saved
    for a, b in zip(found, stepped(Adam, schedule, state=expected.state_dict())[0], strict=True): assert_close(a, b, **CLOSE)


@pytest.mark.parametrize('first, then', [(Adam, FusedAdam), (FusedAdam, Adam), (FusedAdam, FusedAdam)])
def test_goes_on_from_what_either_saved(first, then):
    state = stepped(first, one_cycle)[1].state_dict()
    assert {type(s['step']) for s in state['state']} == {int}
    expected = stepped(Adam, one_cycle, state=stepped(Adam, one_cycle)[1].state_dict())[0]
    for a, b in zip(stepped(then, one_cycle, state=state)[0], expected, strict=True): assert_close(a, b, **CLOSE)


def test_trains_as_fastai_does(hues):
    "A frozen phase, one cycle, and norms and biases that do not decay"
    def trained(opt_func):
        torch.manual_seed(0)
        learn = hue_learner(hues, opt_func=opt_func, wd=.1, dls_kwargs=dict(n_episodes=3, batch_tfms=[]))
        learn.fine_tune(1, pretrain_epochs=0)
        return weights(learn)
    ours, theirs = trained(FusedAdam), trained(Adam)
    for k in ours: assert_close(ours[k], theirs[k], rtol=1e-3, atol=1e-4, msg=lambda text, k=k: f'{k}: {text}')


def test_default_where_a_gpu_trains(hues):
    assert {default_optimizer(device) for device in ('cuda', 'cuda:1', torch.device('cuda'))} == {FusedAdam}
    assert {default_optimizer(device) for device in ('cpu', 'mps', None)} == {Adam}
    dls = hue_loaders(hues)
    assert fsc_learner(dls, 'conv4', 'proto').opt_func is Adam
    assert fsc_learner(dls, 'conv4', 'proto', opt_func=FusedAdam).opt_func is FusedAdam
    assert classification_learner(dls, fsc_learner(dls, 'conv4', 'proto').model.encoder).opt_func is Adam
