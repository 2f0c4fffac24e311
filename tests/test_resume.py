"A fit that was cut off goes on as if nothing had happened"
import pytest
import torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed

from fsc_fastai.callback.lrp import LRPGuidedCallback
from fsc_fastai.callback.resume import ResumeFit, callbacks_with_state, rng_state, set_rng_state
from tests.learners import hue_learner, weights


@pytest.fixture
def root(tmp_path): return tmp_path/'hues'


class CutOff(Callback):
    "Breaks the fit at a batch of an epoch"
    order = 95
    def __init__(self, epoch, batch): self.at = epoch, batch
    def after_batch(self):
        if self.training and (self.epoch, self.iter) == self.at: raise KeyboardInterrupt


def learner(root, *cbs):
    set_seed(5, reproducible=True)
    return hue_learner(root, cbs=[LRPGuidedCallback(), *cbs], dls_kwargs=dict(n_episodes=3))


@pytest.mark.parametrize('cut', [(0, 1), (1, 2)])
def test_resumed_equals_unbroken_bit_for_bit(root, cut):
    whole = learner(root)
    whole.fit_one_cycle(2, 1e-3)
    state = root.parent/'state.pt'
    with pytest.raises(KeyboardInterrupt): learner(root, ResumeFit(state), CutOff(*cut)).fit_one_cycle(2, 1e-3)
    assert state.exists() == (cut[0] > 0)
    resumed = learner(root, ResumeFit(state))
    if cut[0]: torch.rand(3)  # another state of the generators than where the fit was cut off
    resumed.fit_one_cycle(2, 1e-3)
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(expected[k], found[k]) for k in expected)
    assert not list(root.parent.glob('*.part'))


def test_a_finished_fit_is_not_repeated(root):
    state = root.parent/'state.pt'
    first = learner(root, ResumeFit(state))
    first.fit(2)
    again = learner(root, ResumeFit(state))
    again.fit(2)
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(first).items())


def test_the_file_holds_the_model_once(root):
    state = root.parent/'state.pt'
    learn = learner(root, ResumeFit(state))
    learn.fit(1)
    assert torch.load(state, weights_only=False)['callbacks'] == {}
    assert [type(cb) for cb in callbacks_with_state(learn).values()] == []


def test_a_callback_that_the_file_knows_nothing_of(root):
    state = root.parent/'state.pt'
    learner(root, ResumeFit(state)).fit(1)
    class Counts(Callback):
        def load_state_dict(self, state): pass
        def state_dict(self): return {}
    with pytest.raises(ValueError, match='state.pt was saved without Counts'): learner(root, ResumeFit(state), Counts()).fit(2)


def test_rng_state_round_trip():
    import random

    import numpy as np
    def draw(): return random.random(), float(np.random.rand()), torch.rand(1).item()  # noqa: NPY002
    state = rng_state()
    first = draw()
    set_rng_state(state)
    assert draw() == first
