"""Local-global distillation prototypical network (Zhou et al. 2023, LDP-Net): crops should be classified like whole images.

The class probabilities of a query are the target for its crops and for the crops of another query of the class. Crops are encoded
by a slowly moving copy of the encoder without gradient, so the gradient reaches prototypes and targets only.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..methods.base import class_means, episode_way
from ..tensors import full_precision, plain, pool_vectors, single
from .parts.encoded import EncodedCallback

__all__ = ['LDPNetCallback', 'distillation', 'follow', 'local_crops', 'prototype_scores']

Pick = tuple[int, int]


def prototype_scores(
    features: Tensor, # `(n, d)`
    prototypes: Tensor, # `(n_way, d)`
) -> Tensor:
    "Negative squared distances `(n, n_way)`"
    return -(features[:, None] - prototypes).square().sum(-1)


def distillation(
    scores: Tensor, # Scores of the queries `(n_query, n_way)`
    local: Tensor, # Scores of their crops `(n_crops, n_query, n_way)`
    by_class: Tensor, # Positions of the queries of each class `(n_way, n_query / n_way)`
    pick: Pick, # For each class the number of the query that is the target, and of the one whose crops are compared
) -> tuple[Tensor, Tensor]:
    "Cross entropy of crops with their own image, and with another of their class; targets are not detached, as published"
    p, log_l = scores.softmax(-1), local.log_softmax(-1)
    teacher, pupil = (by_class[:, i] for i in pick)
    return -(p * log_l).sum(-1).mean(), -(p[teacher] * log_l[:, pupil]).sum(-1).mean()


def local_crops(
    images: Tensor, # `(n, channels, height, width)`
    n_crops: int, # Crops per image
    size: int, # Side of a crop
    area: tuple[float, float] = (.05, .14), # Smallest and largest share of the image in a crop
) -> Tensor:
    "Random crops, half of them mirrored, `(n_crops · n, channels, size, size)`: the first of every image, then the second, …"
    images = images.repeat(n_crops, 1, 1, 1)
    uniform = lambda low, high: torch.empty(images.shape[0], device=images.device).uniform_(low, high)
    share, ratio = uniform(*area), (uniform(-1, 1) * .2877).exp()  # from 3:4 to 4:3
    width, height = ((share * r).sqrt().clamp(max=1.) for r in (ratio, 1 / ratio))
    x, y = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    width, zero = torch.where(uniform(0, 1) < .5, width, -width), torch.zeros_like(x)
    theta = torch.stack([width, zero, x, zero, height, y], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [*images.shape[:2], size, size], align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode='reflection', align_corners=False)


class LDPNetCallback(EncodedCallback):
    """Train with L + `same` · loss of crops of the same image + `across` · loss of crops of another image (Zhou et al. 2023).

    Published with ProtoNet; with other methods prototypes of pooled features classify the crops, in addition to the method's
    own loss. The copy of the encoder is made in the first fit, kept between fits and in `state_dict`; its batch norms use the
    statistics of the crops. Does nothing under `lr_find`. Raises `ValueError` for a compiled model and for classes with
    different numbers of queries.
    """
    _stateattrs = (*EncodedCallback._stateattrs, 'momentum_encoder')
    momentum_encoder: Any = None # A copy of the model's encoder

    def __init__(self,
        same: float = 1., # Weight of the loss with the same image
        across: float = .15, # Weight of the loss with another image of the class
        momentum: float = .998, # Weight of the copy's old parameters in its new ones
        n_crops: int = 6, # Crops per query
        crop_size: int | None = None, # Side of a crop; None: 96/224 of the images' side
        augment: Callable[[Tensor], Tensor] | None = None, # Changes the crops, like the published colour jitter and blur
    ):
        self.same, self.across, self.momentum = same, across, momentum
        self.n_crops, self.crop_size, self.augment = n_crops, crop_size, augment

    def before_fit(self):
        super().before_fit()
        if self.run and self.momentum_encoder is None:
            self.momentum_encoder = deepcopy(self.raw_model.encoder).requires_grad_(False)

    def before_train(self): self.momentum_encoder.to(next(self.raw_model.parameters()).device).train()

    def after_loss(self):
        support_y, y, n = self.xb[1], plain(self.yb[0]), self.xb[1].shape[0]
        way = episode_way(support_y)
        if len(y) % way: raise ValueError(f'LDPNetCallback: {len(y)} queries are not as many for each of {way} classes')
        features = self.vectors()
        with full_precision(features):
            prototypes = class_means(features[:n], support_y)
            local = prototype_scores(self._encode_crops(), prototypes).unflatten(0, (self.n_crops, -1))
            by_class = y.argsort(stable=True).view(way, -1)
            first, second = torch.randint(by_class.shape[1], (2,)).tolist()
            same, across = distillation(prototype_scores(features[n:], prototypes), local, by_class, (first, second))
        self.add_loss(self.same * same + self.across * across)

    @torch.no_grad()
    def _encode_crops(self) -> Tensor:
        images = plain(self.xb[2])
        least = images.shape[-1] // self.raw_model.encoder.out_shape[2]  # what shrinks to one position
        size = self.crop_size or max(round(images.shape[-1] * 96 / 224), least)
        crops = local_crops(images, self.n_crops, size)
        return single(pool_vectors(self.momentum_encoder(crops if self.augment is None else self.augment(crops))))

    def after_step(self): follow(self.momentum_encoder, self.raw_model.encoder, self.momentum)

    def state_dict(self) -> dict[str, Any]:
        "The state of the copy of the encoder"
        return {} if self.momentum_encoder is None else dict(momentum_encoder=self.momentum_encoder.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        "Restore a state"
        if not state: return
        if self.momentum_encoder is None: self.momentum_encoder = deepcopy(self.raw_model.encoder).requires_grad_(False)
        self.momentum_encoder.load_state_dict(state['momentum_encoder'])


@torch.no_grad()
def follow(
    copy: nn.Module, # Changed in place
    model: nn.Module, # A module with the same parameters
    momentum: float, # Weight of the old parameters
) -> None:
    "Move the parameters of a copy towards those of a model; buffers do not change"
    for old, new in zip(copy.parameters(), model.parameters(), strict=True): old.lerp_(new, 1 - momentum)
