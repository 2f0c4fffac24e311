"Fine-tuning on pseudo-episodes of the support and its augmentations (Wang and Deng 2021, ATA)"
from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..methods.base import FewShotModel, one_hot
from ..tensors import plain
from .augmentations import ata_augment
from .base import Adaptation, checked_support, register_adaptation, seeded

__all__ = ['EpisodeTune', 'pseudo_episode']


def pseudo_episode(
    y: Tensor, # Labels of the support `(n_support,)`
    n_pseudo: int, # Augmented images in total, at least one for each support image
) -> tuple[list[list[tuple[int, int]]], list[int]]:
    """A row of (position in the support, number of the augmentation, 0 for none) for each class, and its shots.

    In a row each image is followed by its augmentations. Its first entries, as many as the class has shots, are the
    pseudo-support, the others the pseudo-queries (CDFSL-ATA, `finetune_ml.py`). At one shot an image is thus the support of its
    own augmentations; with more shots some support images are queries.
    """
    n_views = max(1, n_pseudo // len(y))
    members = [(y == k).nonzero().flatten().tolist() for k in range(int(y.max()) + 1)]
    return [[(i, v) for i in row for v in range(n_views + 1)] for row in members], [len(row) for row in members]


@register_adaptation('episode_tune')
@dataclass(kw_only=True)
class EpisodeTune(Adaptation):
    """Tune the whole model on pseudo-episodes of the support and its augmentations (Wang and Deng 2021; CDFSL-ATA).

    Adam tunes all weights in training mode, one episode per step. The result is a model of the same kind. The published code
    also scores queries in training mode, by batch statistics of the support and all queries: that is `batch_statistics`.
    The defaults are ATA's; StyleAdv (Fu et al. 2023) takes 50 steps with 1e-3 at five shots and 10 with 5e-3 at one.
    """
    steps: int = 50 # Pseudo-episodes, one per step
    lr: float = 1e-3 # Learning rate of Adam
    n_pseudo: int = 75 # Augmented images of each pseudo-episode
    batch_statistics: bool = False # Batch norms of the result use the statistics of the batch, as published
    seed: int = 0 # Seed of the augmentations

    @property
    def transductive(self) -> bool: # type: ignore[override]
        "Queries that share their batch statistics take part in each other's answers"
        return self.batch_statistics

    def __call__(self, model: FewShotModel, support_x: Tensor, support_y: Tensor, query_x: Tensor | None = None) -> FewShotModel:
        "A tuned copy of the model, in eval mode"
        checked_support(self, support_y)
        x, member = plain(support_x), one_hot(support_y)
        with seeded(self.seed, x.device):
            tuned = copy.deepcopy(model).requires_grad_(True)
            self.tune(tuned, x, member)
        for m in tuned.modules() if self.batch_statistics else ():
            if isinstance(m, nn.modules.batchnorm._BatchNorm): m.running_mean = m.running_var = None
        return tuned.eval().requires_grad_(False)

    def tune(self,
        model: FewShotModel, # Tuned in place and left in training mode
        x: Tensor, # Images `(n_support, channels, height, width)`
        member: Tensor, # One-hot labels `(n_support, n_way)`
    ) -> Tensor:
        "Tune the model; returns the loss of every step `(steps,)`"
        rows, shots = pseudo_episode(member.argmax(1), self.n_pseudo)
        support = [place for row, shot in zip(rows, shots) for place in row[:shot]]
        query = [place for row, shot in zip(rows, shots) for place in row[shot:]]
        labels = [member[[i for i, _ in part]] for part in (support, query)]
        optimizer, losses, loss_func = torch.optim.Adam(model.parameters(), self.lr), [], model.default_loss()
        before = vars(model).pop('scores_only', None)
        model.train().scores_only = True
        for _ in range(self.steps):
            views = [torch.stack([ata_augment(x[i]) if view else x[i] for i, view in part]) for part in (support, query)]
            loss = loss_func(model(views[0], labels[0], views[1]), labels[1].argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        del model.scores_only
        if before is not None: model.scores_only = before
        return torch.stack(losses) if losses else x.new_zeros(0)
