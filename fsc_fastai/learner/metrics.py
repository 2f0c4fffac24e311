"Accuracy over episodes and its confidence interval"
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from fastai.learner import Learner, Metric
from torch import Tensor

__all__ = ['episode_accuracy', 'ci95', 'EpisodeAccuracy', 'EpisodeCI95']


def episode_accuracy(
    pred: Tensor | tuple, # Scores `(n_query, n_way)` or `(n_query, n_way, H, W)`, or a tuple that starts with them
    y: Tensor, # Labels within the episode `(n_query,)`
) -> Tensor:
    """Share of the queries that are classified right, a scalar; of scores at every position the mean counts.

    nan where scores are not finite, whose largest says nothing.

    >>> episode_accuracy(torch.tensor([[2., 1.], [0., 3.], [1., 0.], [4., 5.]]), torch.tensor([0, 1, 1, 1]))
    tensor(0.7500)
    """
    scores = pred[0] if isinstance(pred, tuple) else pred
    if scores.ndim > 2: scores = scores.flatten(2).mean(-1)
    return torch.where(scores.isfinite().all(), (scores.argmax(1) == y).float().mean(), math.nan)


def ci95(
    accuracies: Sequence[float] | Tensor, # The accuracy of each episode `(n_episodes,)`
) -> float:
    """Half width of the 95 % confidence interval of the mean over episodes, 1.96·std/√n; nan for fewer than two.

    >>> round(ci95([0.6, 0.8, 0.7, 0.7]), 3)
    0.08
    """
    # on the host: some devices, such as Apple's, have no float64
    values = np.asarray(accuracies.tolist() if isinstance(accuracies, Tensor) else accuracies, dtype=np.float64)
    return 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


class EpisodeAccuracy(Metric):
    "Mean over the episodes of the share of queries classified right"
    def reset(self): self.accuracies: list[Tensor] = []
    def accumulate(self, learn: Learner):
        # as a row, which ranks gather one by one; on the device, so that nothing waits for it
        self.accuracies.append(learn.to_detach(episode_accuracy(learn.pred, *learn.yb).reshape(1), cpu=False))

    @property
    def value(self) -> float | None:
        return torch.cat(self.accuracies).mean().item() if self.accuracies else None

    @property
    def name(self) -> str: return 'accuracy'


class EpisodeCI95(EpisodeAccuracy):
    "Half width of the 95 % confidence interval of `EpisodeAccuracy`"
    @property
    def value(self) -> float | None: return ci95(torch.cat(self.accuracies)) if self.accuracies else None

    @property
    def name(self) -> str: return 'ci95'
