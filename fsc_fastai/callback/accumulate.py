"Gradient accumulation that counts episodes"
from __future__ import annotations

from fastai.callback.core import CancelBatchException
from fastai.callback.training import GradientAccumulation

__all__ = ['EpisodeAccumulation']


class EpisodeAccumulation(GradientAccumulation):
    """Update the weights once every `n_acc` episodes, with the mean of their losses.

    fastai's `GradientAccumulation` counts the rows of `yb`, which are the queries of an episode.
    """
    captured = 'n_acc',

    def __init__(self,
        n_acc: int = 4, # Episodes per update
    ):
        if n_acc < 1: raise ValueError(f'EpisodeAccumulation(n_acc={n_acc}): at least 1 episode per update')
        super().__init__(n_acc)

    def after_loss(self): self.learn.loss_grad /= self.n_acc

    def before_step(self):
        self.learn.loss_grad *= self.n_acc
        self.count += 1
        if self.count < self.n_acc: raise CancelBatchException
        self.count = 0
