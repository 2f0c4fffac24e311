"Steps that are captured once and replayed: on the CPU a tape of operations stands for CUDA's graph"
import random
import warnings
from contextlib import nullcontext

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientClip
from fastai.optimizer import Adam
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fsc_fastai.callback.accumulate import EpisodeAccumulation
from fsc_fastai.callback.afa import AFACallback
from fsc_fastai.callback.graphed_step import GraphedStep
from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.explain import GradientXInput
from fsc_fastai.learner.fused_adam import FusedAdam
from tests.gpu import GPU, ON_CUDA
from tests.learners import hue_learner, weights

from .episodes import Episodes, lft


class Tape(TorchDispatchMode):
    """A graph without CUDA: the operations of a step in their order, each with the tensors that it reads and writes.

    As with CUDA nothing has happened when the recording ends, and a replay writes to the same memory.
    """
    def __init__(self):
        super().__init__()
        self.operations, self.before, self.made, self.replays = [], {}, set(), 0

    def __enter__(self):
        self.random = torch.get_rng_state()
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for value, argument in zip(args, func._schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            written |= func is torch.ops.aten.native_batch_norm.default and argument.name.startswith('running')  # does not say so
            for t in tree_leaves(value) if written and value is not None else ():
                if id(t) not in self.made: self.before.setdefault(id(t), (t, t.clone()))
        out = func(*args, **(kwargs or {}))
        new = all(r.alias_info is None for r in func._schema.returns) and 'empty' not in func.__name__
        outs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.made |= set(map(id, outs))
        self.operations.append((func, args, kwargs or {}, outs if new else []))
        return out

    def __exit__(self, *error):
        super().__exit__(*error)
        torch.set_rng_state(self.random)
        with torch.no_grad():
            for t, before in self.before.values(): t.copy_(before)

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for func, args, kwargs, outs in self.operations:
            new = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, torch.Tensor)]
            for t, value in zip(outs, new): t.copy_(value)


class OnTape(GraphedStep):
    "Captures on the CPU"
    graphs = 0
    def _on_device(self): return True
    def _new_graph(self):
        self.graphs += 1
        self.tape = Tape()
        return self.tape
    def _recording(self, graph): return graph
    def _warming(self): return nullcontext()


Graphed = GraphedStep if ON_CUDA else OnTape


class StepLosses(Callback):
    "Losses of the steps, and whether the model is as it was after each"
    order = 95
    def __init__(self): self.found = []
    def after_batch(self):
        if not self.training: return
        self.found.append(self.loss.detach().clone())
        assert not any(m._forward_hooks for m in self.model.modules()) and not self.model._processed_hooks


def trained(hues, method, cbs, opt_func=Adam, fits=1, **kwargs):
    torch.manual_seed(0)
    settings = dict(n_episodes=6, batch_tfms=[]) | kwargs
    learn = hue_learner(hues, method, cbs=[*cbs, StepLosses()], opt_func=opt_func, dls_kwargs=settings)
    for _ in range(fits): learn.fit_one_cycle(1, 1e-4)
    return learn


KINDS = {'plain': list, 'guided': lambda: [LRPGuidedCallback()],
         'clipped': lambda: [GradientClip(.1), LRPGuidedCallback()],
         'accumulated': lambda: [EpisodeAccumulation(2), LRPGuidedCallback()],
         'gradient x input': lambda: [LRPGuidedCallback(explainer=GradientXInput())]}
METHODS = ['relation', 'cross_attention', 'gnn', 'proto']
CELLS = [(m, 'guided') for m in METHODS] + [('relation', k) for k in KINDS if k != 'guided']


def check(hues, method, kind, step, **kwargs):
    "Replayed steps lead where the steps as they are lead, and their losses are told alike"
    plain, replayed = (trained(hues, method, [*KINDS[kind](), *own], **kwargs) for own in ([], [step]))
    assert_close(torch.stack(replayed.step_losses.found), torch.stack(plain.step_losses.found), rtol=1e-3, atol=1e-4)
    a, b = weights(replayed), weights(plain)
    for k in a: assert_close(a[k], b[k], rtol=1e-3, atol=1e-5, msg=lambda text, k=k: f'{k}: {text}')
    assert replayed.recorder.lrs == plain.recorder.lrs
    if hasattr(replayed, 'lrp_guided'):
        ours, theirs = (torch.tensor(learn.lrp_guided.losses) for learn in (replayed, plain))
        assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        assert len(ours[:, 0].unique()) > 1, 'of each step its own'
    return replayed


@pytest.mark.parametrize('method, kind', CELLS)
def test_replays_are_the_steps(hues, method, kind):
    check(hues, method, kind, step := OnTape(2))
    assert step.graphs == 1 and step.tape.replays == 4 and not step.reason


def test_with_the_fused_optimizer_and_in_two_fits(hues):
    replayed = check(hues, 'relation', 'guided', step := OnTape(2), opt_func=FusedAdam, fits=1)
    replayed.fit(1, 1e-3)
    assert step.graphs == 2, 'each fit captures anew, for the model may have changed in between'


@pytest.mark.gpu
@pytest.mark.parametrize('opt_func', [Adam, FusedAdam])
@pytest.mark.parametrize('method, kind', CELLS)
def test_replays_are_the_steps_on_a_gpu(hues, method, kind, opt_func, full_single_precision):
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        check(hues, method, kind, Graphed(2), opt_func=opt_func, device=GPU)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_CUDA, reason="fastai's mixed precision knows CUDA alone")
@pytest.mark.parametrize('precision', ['to_fp16', 'to_bf16'])
def test_mixed_precision_on_a_gpu(hues, precision):
    def losses(*own):
        torch.manual_seed(0)
        settings = dict(n_episodes=6, batch_tfms=[], device=GPU)
        learn = hue_learner(hues, cbs=[LRPGuidedCallback(), *own, StepLosses()], dls_kwargs=settings)
        getattr(learn, precision)()
        learn.fit(1, 1e-3)
        assert not torch.is_autocast_enabled(torch.device(GPU).type)
        return torch.stack(learn.step_losses.found)
    assert_close(losses(Graphed(2)), losses(), rtol=2e-2, atol=2e-2)


def reason(hues, method, cbs, step=None, **kwargs):
    "What the warning of a fit says, whose steps are those without graphs"
    step = step or OnTape(2)
    with pytest.warns(UserWarning, match='GraphedStep: ') as told: trained(hues, method, [*cbs, step], **kwargs)
    found = [str(w.message) for w in told if 'GraphedStep' in str(w.message)]
    assert len(found) == 1, 'told once'
    return found[0]


class OnHost(nn.Module):
    "Drops maps by Python's random numbers"
    def forward(self, x): return x * (random.random() < .9)


class Asks(nn.Module):
    def forward(self, x): return x / max(1., float(x.detach().max()))


def with_part(part):
    class Put(Callback):
        def before_fit(self):
            body = self.model.encoder.body
            if not isinstance(body, nn.Sequential): self.model.encoder.body = nn.Sequential(body, part)
    return Put()


def test_says_why_not(hues):
    class Doubled(Callback):
        def after_loss(self): self.learn.loss_grad = self.learn.loss_grad * 2
    assert 'no CUDA device' in reason(hues, 'proto', [], GraphedStep())
    assert 'Doubled takes part in the step' in reason(hues, 'proto', [Doubled()])
    assert 'AFACallback takes part' in reason(hues, 'proto', [AFACallback()])
    unseen = _unchecked(lft([Episodes(dtype=torch.float32)]))
    assert 'LFTCallback takes its pseudo-unseen episodes within the step' in reason(hues, 'proto', [unseen])
    assert 'random numbers on the host' in reason(hues, 'proto', [with_part(OnHost())])
    assert 'waits for a value of the device (aten._local_scalar_dense' in reason(hues, 'proto', [with_part(Asks())])


def _unchecked(cb):
    cb.domains.check = lambda dls: None
    return cb


def test_other_sizes_run_as_they_are(hues):
    assert 'episodes differ in size' in reason(hues, 'proto', [LRPGuidedCallback()], step := OnTape(1), n_query=(2, 4))
    assert step.graphs <= 1


def test_a_changed_setting_ends_the_replays(hues):
    class Less(Callback):
        order = -5
        def before_batch(self):
            if self.training and self.iter == 4: self.learn.lrp_guided.lam = 0.
    kinds = lambda: [LRPGuidedCallback(1., 1.), Less()]
    step = OnTape(2)
    assert 'changed' in reason(hues, 'proto', kinds(), step)
    assert step.tape.replays == 2


def test_an_error_in_a_captured_step_leaves_nothing_behind(hues):
    class Fails(Callback):
        captured = ()
        fail = True
        def after_loss(self):
            if self.training and self.iter == 2 and self.fail: raise RuntimeError('meant')
    fails, step = Fails(), OnTape(2)
    learn = hue_learner(hues, 'proto', cbs=[fails, step], dls_kwargs=dict(n_episodes=4))
    with pytest.raises(RuntimeError, match='meant'): learn.fit(1)
    fails.fail = False
    learn.fit(1)
    assert step.tape.replays == 2


def test_wants_a_step_to_look_at():
    with pytest.raises(ValueError, match='warm_up=0'): GraphedStep(0)
