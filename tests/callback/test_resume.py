"A fit that was cut off goes on as if nothing had happened"
import os
import random
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.schedule import ParamScheduler
from fastai.optimizer import SGD, Adam
from fastai.torch_core import set_seed

from fsc_fastai.callback.accumulate import EpisodeAccumulation
from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.callback.resume import ResumeFit, callbacks_with_state, rng_state, set_rng_state
from fsc_fastai.learner.fused_adam import FusedAdam
from tests.gpu import GPU
from tests.learners import hue_learner, weights
from tests.ranks import in_ranks

from .episodes import CutOff


@pytest.fixture
def state(tmp_path): return tmp_path/'state.pt'


def learner(hues, *cbs, seed=5, xi=1., n_shot=2, **kwargs):
    set_seed(seed, reproducible=True)
    return hue_learner(hues, cbs=[LRPGuidedCallback(xi=xi), *cbs], dls_kwargs=dict(n_episodes=3, n_shot=n_shot), **kwargs)


@pytest.mark.parametrize('cut', [(0, 1), (1, 2)])
def test_resumed_equals_unbroken_bit_for_bit(state, hues, cut):
    whole = learner(hues)
    whole.fit_one_cycle(2, 1e-3)
    with pytest.raises(KeyboardInterrupt): learner(hues, ResumeFit(state), CutOff(*cut)).fit_one_cycle(2, 1e-3)
    assert state.exists() == (cut[0] > 0)
    resumed = learner(hues, ResumeFit(state))
    if cut[0]: torch.rand(3)  # another state of the generators than where the fit was cut off
    resumed.fit_one_cycle(2, 1e-3)
    assert same(whole, resumed) and not list(state.parent.glob('*.part'))


def same(a, b): return all(torch.equal(v, weights(b)[k]) for k, v in weights(a).items())


def test_a_schedule_of_slices_goes_on_and_is_compared(state, hues):
    def steps(head): return ParamScheduler({'lr': lambda pct: slice(1e-4, 1e-3 if pct < .5 else head)})
    whole = learner(hues, steps(1e-4))
    whole.fit(2)
    with pytest.raises(KeyboardInterrupt): learner(hues, ResumeFit(state), steps(1e-4), CutOff(1, 2)).fit(2)
    with pytest.raises(ValueError, match='schedule.lr='): learner(hues, ResumeFit(state), steps(2e-4)).fit(2)
    resumed = learner(hues, ResumeFit(state), steps(1e-4))
    resumed.fit(2)
    assert same(whole, resumed)


@pytest.mark.parametrize('every', [1, 3])
def test_a_finished_fit_is_not_repeated_and_says_so(state, hues, caplog, every):
    first = learner(hues, ResumeFit(state, every))
    first.fit(2)
    assert 'nothing is left' not in caplog.text
    again = learner(hues, ResumeFit(state, every), CutOff(0, 0))
    again.fit(2)
    assert same(first, again) and f'{state} has all 2 epochs of fit 1: nothing is left to train' in caplog.text


class Steps(Callback):
    "Counts the steps of each fit"
    def __init__(self): self.counts = []
    def before_fit(self): self.counts.append(0)
    def after_step(self): self.counts[-1] += 1


# 3 episodes an epoch: one epoch frozen, then three of everything
@pytest.mark.parametrize(('phase', 'epoch', 'steps_left'), [(0, 0, [3, 9]), (1, 0, [0, 9]), (1, 2, [0, 3])])
def test_both_phases_of_fine_tune_go_on_from_one_file(state, hues, phase, epoch, steps_left):
    kwargs = dict(freeze_epochs=1, pretrain_epochs=0)
    whole = learner(hues, steps := Steps())
    whole.fine_tune(3, **kwargs)
    assert steps.counts == [3, 9]
    unbroken = learner(hues, ResumeFit(state), steps := Steps())
    unbroken.fine_tune(3, **kwargs)
    assert steps.counts == [3, 9] and same(whole, unbroken)
    state.unlink()

    class CutOffInPhase(CutOff):
        fits = -1
        def before_fit(self): self.fits += 1
        def after_batch(self):
            if self.fits == phase: super().after_batch()

    with pytest.raises(KeyboardInterrupt): learner(hues, ResumeFit(state), CutOffInPhase(epoch, 1)).fine_tune(3, **kwargs)
    resumed = learner(hues, ResumeFit(state), steps := Steps())
    resumed.fine_tune(3, **kwargs)
    assert steps.counts == steps_left and same(whole, resumed)


def test_interrupted_by_hand_it_goes_on_in_the_same_learner(state, hues):
    whole = learner(hues)
    whole.fit_one_cycle(2, 1e-3)
    learn = learner(hues, ResumeFit(state), cut := CutOff(1, 1))
    with pytest.raises(KeyboardInterrupt): learn.fit_one_cycle(2, 1e-3)
    learn.remove_cb(cut)
    learn.fit_one_cycle(2, 1e-3)
    assert same(whole, learn)


def test_it_does_nothing_in_lr_find(hues, state):
    learn = learner(hues, ResumeFit(state))
    learn.lr_find(num_it=6, show_plot=False)
    assert not state.exists()
    learn.fit(1)
    assert learn.resume_fit.start == 0 and state.exists()
    again = learner(hues, ResumeFit(state))
    again.lr_find(num_it=6, show_plot=False)
    assert not same(learn, again)


def test_a_fit_that_a_callback_ended_is_over(hues, state):
    class Early(Callback):
        def after_epoch(self):
            if self.epoch == 1: raise CancelFitException
    first = learner(hues, ResumeFit(state), Early())
    first.fit(4)
    again = learner(hues, ResumeFit(state), Early(), steps := Steps())
    with pytest.warns(UserWarning, match="written beside .'Early'., now it is beside .'Early', 'Steps'."): again.fit(4)
    assert steps.counts == [0] and same(first, again)


@pytest.mark.parametrize('first, then', [((Adam, 'cpu'), (FusedAdam, 'cpu')), ((FusedAdam, 'cpu'), (Adam, 'cpu')),
                                         *(pytest.param(*places, marks=pytest.mark.gpu) for places in
                                           [((Adam, 'cpu'), (FusedAdam, GPU)), ((FusedAdam, GPU), (Adam, 'cpu'))])],
                         ids=['to fused', 'from fused', 'to gpu', 'from gpu'])
def test_goes_on_by_the_other_adam_and_on_another_device(root, full_single_precision, first, then):
    "A GPU's default optimizer is the fused one. A large ε, for else what is rounded of gradients that are 0 makes steps"
    def made(where, *cbs):
        set_seed(5, reproducible=True)
        settings = dict(n_episodes=3, batch_tfms=[], device=where[1])
        return hue_learner(root, cbs=[LRPGuidedCallback(), *cbs], dls_kwargs=settings, opt_func=partial(where[0], eps=.1))
    whole = made((Adam, 'cpu'))
    before = weights(whole)
    whole.fit_one_cycle(2, .1)
    state = root.parent/'state.pt'
    with pytest.raises(KeyboardInterrupt): made(first, ResumeFit(state), CutOff(1, 1)).fit_one_cycle(2, .1)
    resumed = made(then, ResumeFit(state), steps := Steps())
    resumed.fit_one_cycle(2, .1)
    assert steps.counts == [3]
    after, found = weights(whole), weights(resumed)
    assert max((after[k].float() - v.float()).abs().max() for k, v in before.items() if 'weight' in k) > 1e-2
    for k, v in after.items(): torch.testing.assert_close(found[k].cpu(), v, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('here', [0, 1, 3])
def test_generators_of_devices_that_are_not_here_are_left_out(monkeypatch, here):
    put = []
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: here)
    monkeypatch.setattr(torch.cuda, 'set_rng_state_all', put.extend)
    states = [torch.zeros(4, dtype=torch.uint8), torch.ones(4, dtype=torch.uint8)]
    set_rng_state(rng_state() | dict(cuda=states))
    assert [s.tolist() for s in put] == [s.tolist() for s in states[:here]]


@pytest.fixture(scope='module')
def two_epochs(hues, tmp_path_factory):
    "The state of a training of two epochs"
    file = tmp_path_factory.mktemp('state')/'state.pt'
    learner(hues, ResumeFit(file)).fit_one_cycle(2, 1e-3)
    return file.read_bytes()


class Counts(Callback):
    def load_state_dict(self, state): pass
    def state_dict(self): return {}


@pytest.mark.parametrize(('other', 'named'), [
    (lambda hues, *cbs: learner(hues, *cbs).fit_one_cycle(3, 1e-3), r'epochs=2 \(now 3\)'),
    (lambda hues, *cbs: learner(hues, *cbs).fit_one_cycle(2, 1e-2), 'schedule.lr='),
    (lambda hues, *cbs: learner(hues, *cbs).fit_one_cycle(2, 1e-3, wd=.5), r'hypers.wd=\[0.01, 0.01\] \(now \[0.5, 0.5\]\)'),
    (lambda hues, *cbs: learner(hues, *cbs).fit(2, 1e-3), 'schedule.lr='),
    (lambda hues, *cbs: learner(hues, *cbs, seed=6).fit_one_cycle(2, 1e-3), r'seed=5 \(now 6\)'),
    (lambda hues, *cbs: learner(hues, *cbs, Counts()).fit_one_cycle(2, 1e-3), r"callbacks.Counts=None \(now '\(\)'\)"),
    (lambda hues, *cbs: learner(hues, *cbs, EpisodeAccumulation(2)).fit_one_cycle(2, 1e-3), 'callbacks.EpisodeAccumulation=None'),
    (lambda hues, *cbs: learner(hues, *cbs, xi=.5).fit_one_cycle(2, 1e-3), 'callbacks.LRPGuidedCallback=.*xi=1.*now.*xi=0.5'),
    (lambda hues, *cbs: learner(hues, *cbs, n_shot=3).fit_one_cycle(2, 1e-3), r'episodes.n_shot=2 \(now 3\)'),
    (lambda hues, *cbs: learner(hues, *cbs, method='proto').fit_one_cycle(2, 1e-3), "model='RelationNet .*now 'ProtoNet"),
    (lambda hues, *cbs: learner(hues, *cbs, opt_func=SGD).fit_one_cycle(2, 1e-3), 'hypers.sqr_mom='),
    (lambda hues, cb: learner(hues, ResumeFit(cb.file, of=dict(data='b'))).fit_one_cycle(2, 1e-3), "of.data=None .now 'b'.")])
def test_what_differs_is_said(state, hues, two_epochs, other, named):
    state.write_bytes(two_epochs)
    with pytest.raises(ValueError, match=f'{state} was made with other settings: .*{named}'): other(hues, ResumeFit(state))
    assert state.read_bytes() == two_epochs


@pytest.mark.parametrize('broken', [lambda b: b'', lambda b: b[:len(b)//2], lambda b: b'garbage' * 99,
                                    lambda b: b[:9999] + bytes([b[9999] ^ 4]) + b[10000:], lambda b: b'x' + b[1:]])
def test_a_broken_file_is_named(state, two_epochs, hues, broken):
    state.write_bytes(broken(two_epochs))
    learn = learner(hues, ResumeFit(state))
    before = weights(learn)
    with pytest.raises(ValueError, match=f'{state} is broken .*Remove it'): learn.fit_one_cycle(2, 1e-3)
    assert all(torch.equal(v, weights(learn)[k]) for k, v in before.items())


def test_the_file_holds_the_model_once(hues, state):
    learn = learner(hues, ResumeFit(state))
    learn.fit(1)
    sizes = sum(v.nbytes for v in weights(learn).values())
    assert list(callbacks_with_state(learn)) == [] and state.stat().st_size < 3.3*sizes  # and Adam's two averages


class Draws(Callback):
    "What each rank's generators give at each step"
    order = 100
    def before_fit(self): self.drawn = []
    def after_batch(self):
        if self.training: self.drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002


def of_rank(hues, state, cut):
    rank = int(os.environ['RANK'])
    learn = learner(hues, draws := Draws(), *([ResumeFit(state)] if state else []), *([CutOff(1, 0)] if cut else []))
    torch.manual_seed(rank)
    random.seed(rank)
    try:
        with learn.distrib_ctx(cpu=True): learn.fit_one_cycle(3, 1e-3)
    except KeyboardInterrupt: pass
    return draws.drawn, weights(learn)


def test_ranks_share_a_file_and_keep_their_own_random_numbers(state, hues, tmp_path):
    whole = in_ranks(of_rank, tmp_path, hues, None, False)
    in_ranks(of_rank, tmp_path, hues, state, True)
    assert state.exists() and not list(tmp_path.glob('.*.part'))
    resumed = in_ranks(of_rank, tmp_path, hues, state, False)
    for (drawn, expected), (drawn_again, found) in zip(whole, resumed, strict=True):
        assert drawn[-len(drawn_again):] == drawn_again and len(drawn_again) == len(drawn)*2//3
        assert all(torch.equal(expected[k], found[k]) for k in expected)
    assert resumed[0][0] != resumed[1][0]
