"Accuracy over episodes and its interval"
import math
from types import SimpleNamespace

import pytest
import torch

from fsc_fastai.metrics import EpisodeAccuracy, EpisodeCI95, ci95, episode_accuracy


def test_ci95_is_the_normal_interval_of_the_mean():
    assert ci95([0.2, 0.4, 0.6, 0.8]) == pytest.approx(1.96 * math.sqrt(0.2/3) / 2)
    assert ci95([0.5]*10) == 0
    assert math.isnan(ci95([0.5]))


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
