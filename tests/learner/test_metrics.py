"Accuracy over episodes and its interval"
import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fsc_fastai.learner.metrics import EpisodeAccuracy, EpisodeCI95, ci95, episode_accuracy
from tests.learners import hue_learner


def test_ci95_is_the_normal_interval_of_the_mean():
    assert ci95([0.2, 0.4, 0.6, 0.8]) == pytest.approx(1.96 * math.sqrt(0.2/3) / 2)
    assert ci95([0.5]*10) == 0
    assert math.isnan(ci95([0.5]))


class NoFloat64(TorchDispatchMode):
    "Refuses what Apple's GPUs refuse, whatever the device; torch makes single numbers on the host"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = (o for o in tree_leaves(result) if isinstance(o, torch.Tensor) and o.ndim)
        if any(o.dtype == torch.float64 for o in tensors): raise TypeError('float64')
        return result


def test_metrics_and_evaluation_need_no_float64_of_the_device(tmp_path):
    learn = hue_learner(tmp_path/'hues', dls_kwargs=dict(n_episodes=2))
    with NoFloat64():
        with pytest.raises(TypeError, match='float64'): torch.zeros(1).double()
        assert len(learn.validate()) == 3
        learn.evaluate(n_episodes=3, n_query=3)
        assert learn.confusion('novel', n_episodes=3, n_query=3).shape == (4, 4)
        learn.explain()


def test_accuracy_reads_scores_tuples_and_maps():
    scores = torch.tensor([[2., 1.], [0., 1.], [3., 4.]])
    y = torch.tensor([0, 1, 0])
    assert episode_accuracy(scores, y) == pytest.approx(2/3)
    assert episode_accuracy((scores, None), y) == pytest.approx(2/3)
    assert episode_accuracy(scores[..., None, None].expand(-1, -1, 2, 2), y) == pytest.approx(2/3)


def test_metrics_weigh_every_episode_the_same():
    "A mean over queries would give the larger episode more weight"
    learn = SimpleNamespace(to_detach=lambda x, cpu: x)
    accuracy, interval = EpisodeAccuracy(), EpisodeCI95()
    for metric in (accuracy, interval):
        metric.reset()
        for n_right, n in ((1, 2), (10, 10)):
            learn.pred, learn.yb = torch.eye(2)[[0]*n], (torch.tensor([0]*n_right + [1]*(n - n_right)),)
            metric.accumulate(learn)
    assert accuracy.value == pytest.approx(0.75)
    assert interval.value == pytest.approx(ci95([0.5, 1.0]))
    accuracy.reset()
    assert accuracy.value is None
