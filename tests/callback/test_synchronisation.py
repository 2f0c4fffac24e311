"A training step waits for the device no more often than fastai itself does"
import traceback
from itertools import product

import pytest
import torch
from fastai.callback.core import Callback

from fsc_fastai.callback import graphed_step
from fsc_fastai.callback.accumulate import EpisodeAccumulation
from fsc_fastai.callback.afa import AFACallback
from fsc_fastai.callback.ata import ATACallback
from fsc_fastai.callback.bsr import BSRCallback
from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.callback.guided.lrp_controls import ChangedWeights, shuffled, shuffled_channels
from fsc_fastai.callback.ldp_net import LDPNetCallback
from fsc_fastai.callback.lft import FTCallback, LFTCallback
from fsc_fastai.callback.maml import FirstOrderMAML
from fsc_fastai.callback.styleadv import StyleAdvCallback
from fsc_fastai.callback.svasp import SVasPCallback
from fsc_fastai.callback.wave_san import WaveSANCallback
from fsc_fastai.explain import LRP, Gamma, GradientXInput, IntegratedGradients
from tests.gpu import GPU, wait_errors
from tests.learners import hue_learner, hue_loaders
from tests.methods.toys import METHODS


def _counts_steps() -> bool:
    "Whether torch's optimizer asks for its number of steps, which it keeps on the host"
    return any('torch/optim' in frame.filename for frame in traceback.extract_stack(limit=12))


class Waits(graphed_step.Waits):
    "But for what torch's optimizer asks; on the CPU no copy from it would show, so `.cpu()` is patched"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = len(self.found)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if len(self.found) > before and _counts_steps(): self.found.pop()
        return out


class CountWaits(Callback):
    "Counts from the forward pass to the end of each training step, except the first, which may set things up"
    order, run_valid = -100, False
    waits = None # not in a step


    def before_fit(self): self.waits, self.counted = None, []

    def before_batch(self):
        self.waits = Waits()
        self.waits.__enter__()

    def after_batch(self):
        self.waits.__exit__(None, None, None)
        if self.iter: self.counted.append(self.waits.found)
        self.waits = None


def lft(hues):
    cb = LFTCallback([list(hue_loaders(hues, n_episodes=3, seed=1).train)])  # loaded: that is the host's business
    cb.domains.check = lambda dls: None  # the same images here
    return cb


KINDS = {'plain': lambda hues: [], 'guided': lambda hues: [LRPGuidedCallback()], 'ft': lambda hues: [FTCallback()],
         'lft': lambda hues: [lft(hues)], 'lft guided': lambda hues: [lft(hues), LRPGuidedCallback()],
         'accumulated': lambda hues: [EpisodeAccumulation(2), LRPGuidedCallback()],
         'styleadv': lambda hues: [StyleAdvCallback()], 'svasp': lambda hues: [SVasPCallback()],
         'ata': lambda hues: [ATACallback()], 'maml': lambda hues: [FirstOrderMAML(epochs=1)],
         'added': lambda hues: [AFACallback(), BSRCallback(), LDPNetCallback(crop_size=16)],
         'wave san': lambda hues: [WaveSANCallback([list(hue_loaders(hues, n_episodes=3, seed=1).train)])]}

EXPLAINED = {'engine': lambda hues: [LRPGuidedCallback(explainer=LRP(engine=True))],
             'engine, other rules': lambda hues: [LRPGuidedCallback(explainer=LRP(alpha=2., composite={'*.fc*': Gamma()}))],
             'gradient x input': lambda hues: [LRPGuidedCallback(explainer=GradientXInput())],
             'integrated': lambda hues: [LRPGuidedCallback(explainer=IntegratedGradients(2))],
             'shuffled': lambda hues: [LRPGuidedCallback(second_pass=ChangedWeights(shuffled))],
             'shuffled channels': lambda hues: [LRPGuidedCallback(second_pass=ChangedWeights(shuffled_channels))]}
OF_METHODS = ['plain', 'guided', 'lft guided']
"What runs another code for each method"
CELLS = [*product(METHODS, OF_METHODS), *product(['relation', 'gnn'], EXPLAINED),
         *(('can', kind) for kind in KINDS if kind not in OF_METHODS)]


def trained(hues, method, cbs, **kwargs):
    learn = hue_learner(hues, method, cbs=cbs, dls_kwargs=dict(n_episodes=3, val_n_episodes=1, **kwargs))
    learn.fit(1)
    return learn


@pytest.mark.parametrize('method, kind', CELLS)
def test_step_needs_no_value_on_the_host(hues, method, kind):
    to_cpu = torch.Tensor.cpu
    counter = CountWaits()

    def cpu(tensor, *args, **kwargs):
        if counter.waits is not None and counter.learn.training: counter.waits.found.append('Tensor.cpu')
        return to_cpu(tensor, *args, **kwargs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, 'cpu', cpu)
        trained(hues, method, [*(KINDS | EXPLAINED)[kind](hues), counter])
    assert len(counter.counted) == 2
    for found in counter.counted: assert found == []


def test_the_count_notices_what_waits(hues):
    class Waiting(Callback):
        order, run_valid = 20, False
        def after_loss(self):
            self.loss.item(), self.loss.detach().cpu(), self.pred[self.pred > 0], self.pred.nonzero()
    counter = CountWaits()
    trained(hues, 'proto', [Waiting(), counter])
    assert all(len(found) >= 3 for found in counter.counted)


@pytest.mark.gpu
@pytest.mark.parametrize('method, kind', CELLS)
def test_step_does_not_synchronise_the_gpu(hues, method, kind):
    class Strict(Callback):
        "An error where a step synchronises, except in the first step and in what fastai's recorder does after the last event"
        order, run_valid = -100, False
        def before_batch(self): wait_errors('error' if self.iter else 'default')
        def after_step(self): wait_errors('default')
        def after_cancel_batch(self): wait_errors('default')
    try: trained(hues, method, [*(KINDS | EXPLAINED)[kind](hues), Strict()], device=GPU)
    finally: wait_errors('default')
