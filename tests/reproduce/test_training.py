"Training by a recipe: the best epoch, learning rates in steps, optimizers"
import pytest
import torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed

from fsc_fastai.callback.resume import ResumeFit
from fsc_fastai.learner.metrics import EpisodeAccuracy
from fsc_fastai.reproduce.cells import Recipe
from fsc_fastai.reproduce.training import KeepBest, LevelsOff, optimizer_of, stepwise
from tests.callback.episodes import CutOff
from tests.learners import hue_learner, weights

LEVELLING = [.3, .5, .4, .6, .5, .6, .7, .6, .7, .9]  # the rate falls after the sixth epoch, training ends after the ninth


class Scripted(EpisodeAccuracy):
    "An accuracy that is known in advance"
    def __init__(self, values, epoch=-1): self.values, self.epoch = values, epoch
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
    assert learn.keep_best.accuracies == [.3, .7, .7, .5]
    after = weights(learn)
    assert all(torch.equal(after[k], seen[1][k]) for k in after) and any(not torch.equal(after[k], seen[3][k]) for k in after)


def test_learning_rates_in_steps(tmp_path):
    learn = hue_learner(tmp_path/'hues')
    learn.fit(4, .1, cbs=stepwise(.1, ((1, .02), (3, .004)), 4))
    n = len(learn.dls.train)
    assert learn.recorder.lrs == pytest.approx([.1]*n + [.02]*2*n + [.004]*n)


def test_the_encoder_keeps_its_share_of_a_step(tmp_path):
    learn, rates = hue_learner(tmp_path/'hues'), Rates()
    learn.fit(3, slice(.001, .1), cbs=[rates, stepwise(slice(.001, .1), ((2, .05),), 3)])
    assert rates.seen == [.001, .001, .0005] and learn.opt.hypers[-1]['lr'] == .05


def test_sgd_is_that_of_the_publication(tmp_path):
    learn = hue_learner(tmp_path/'hues', opt_func=optimizer_of(Recipe(optimizer='sgd')))
    learn.fit(1, .1)
    group = learn.opt.opt.param_groups[0]
    assert (group['momentum'], group['nesterov'], group['weight_decay'], group['lr']) == (.9, True, 5e-4, .1)


class Rates(Callback):
    "The learning rate of each epoch"
    order = KeepBest.order - 1
    def __init__(self): self.seen = []
    def after_epoch(self): self.seen.append(round(self.opt.hypers[0]['lr'], 5))


@pytest.mark.parametrize('opt', ['adam', 'sgd'])
def test_training_ends_when_its_accuracy_has_levelled_off(tmp_path, opt):
    metric, rates = Scripted(LEVELLING), Rates()
    learn = hue_learner(tmp_path/'hues', metrics=[metric], cbs=[LevelsOff(metric, 2), rates],
                        opt_func=optimizer_of(Recipe(optimizer=opt)))
    kept = []
    learn.levels_off.after_validate = lambda f=learn.levels_off.after_validate: (f(), kept.append(weights(learn)))
    learn.fit(20, .01)
    assert learn.levels_off.accuracies == LEVELLING[:-1] and rates.seen == [.01]*6 + [.001]*3
    assert all(torch.equal(v, kept[6][k]) for k, v in weights(learn).items())


def test_a_training_that_levels_off_goes_on_where_it_was_cut_off(tmp_path):
    def fit(state, after=-1, cbs=()):
        metric = Scripted(LEVELLING, after)
        set_seed(3)
        learn = hue_learner(tmp_path/'hues', metrics=[metric], cbs=LevelsOff(metric, 2))
        learn.fit(20, .01, cbs=[ResumeFit(tmp_path/state), *cbs])
        return learn
    whole = fit('whole.pt')
    with pytest.raises(KeyboardInterrupt): fit('again.pt', cbs=[CutOff(7)])
    again = fit('again.pt', after=6)
    assert again.levels_off.accuracies == whole.levels_off.accuracies == LEVELLING[:-1]
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(whole).items())
