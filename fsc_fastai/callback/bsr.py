"""Batch spectral regularisation (Liu et al. 2020, FTEM): a penalty on the singular values of the features.

If a few singular values dominate, few directions separate the training classes; other domains need the other directions too.
"""
from __future__ import annotations

from torch import Tensor

from .parts.encoded import EncodedCallback

__all__ = ['BSRCallback', 'spectral_penalty']


def spectral_penalty(
    features: Tensor, # Features of a batch `(n, d)`
) -> Tensor:
    "The sum of the squared singular values, which equals the sum of all squared entries"
    return features.square().sum()


class BSRCallback(EncodedCallback):
    """Train with L + λ·Σσ², where σ are the singular values of the pooled features of a step (Liu et al. 2020, equation 3).

    Published for the classification that pre-trains an encoder, `learn.pretrain_encoder(cbs=BSRCallback())`; in an episode the
    penalty covers support and queries together. For any backbone. Does nothing under `lr_find`. Raises `ValueError` for a
    compiled model.
    """
    def __init__(self,
        lam: float = 1e-3, # λ, weight of the penalty
        images: int | None = None, # Batch size that λ is meant for; None: as published, larger batches are penalised more
    ):
        if images is not None and images < 1: raise ValueError(f'BSRCallback(images={images}): at least 1, published are 16')
        self.lam, self.images = lam, images

    def after_loss(self):
        features = self.vectors()
        share = 1. if self.images is None else self.images / features.shape[0]
        self.add_loss(self.lam * share * spectral_penalty(features))
