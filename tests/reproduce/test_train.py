"Training by a recipe: the best epoch, learning rates in steps, optimizers"
import pytest
import torch

from fsc_fastai.metrics import EpisodeAccuracy
from fsc_fastai.reproduce.cells import Recipe
from fsc_fastai.reproduce.train import KeepBest, _optimizer, _stepwise
from tests.learners import hue_learner, weights


class Scripted(EpisodeAccuracy):
    "An accuracy that is known in advance"
    def __init__(self, values): self.values, self.epoch = values, -1
    def reset(self): self.epoch += 1
    def accumulate(self, learn): pass
    @property
    def value(self): return self.values[self.epoch]


def test_the_weights_of_the_best_epoch_are_kept(tmp_path):
    metric = Scripted([.3, .7, .7, .5])
    learn = hue_learner(tmp_path/'hues', metrics=[metric], cbs=KeepBest(metric))
    seen = []
    learn.keep_best.after_epoch = lambda: seen.append(weights(learn))
    learn.fit(4)
    assert learn.keep_best.best == .7
    after = weights(learn)
    assert all(torch.equal(after[k], seen[1][k]) for k in after) and any(not torch.equal(after[k], seen[3][k]) for k in after)


def test_learning_rates_in_steps(tmp_path):
    learn = hue_learner(tmp_path/'hues')
    learn.fit(4, .1, cbs=_stepwise(.1, ((1, .02), (3, .004)), 4))
    n = len(learn.dls.train)
    assert learn.recorder.lrs == pytest.approx([.1]*n + [.02]*2*n + [.004]*n)


def test_sgd_is_that_of_the_publication(tmp_path):
    learn = hue_learner(tmp_path/'hues', opt_func=_optimizer(Recipe(optimizer='sgd')))
    learn.fit(1, .1)
    group = learn.opt.opt.param_groups[0]
    assert (group['momentum'], group['nesterov'], group['weight_decay'], group['lr']) == (.9, True, 5e-4, .1)
