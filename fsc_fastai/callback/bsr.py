"""Batch spectral regularisation (Liu et al. 2020, FTEM): features whose singular values stay small.

If a few singular values of a batch's features are large, few directions tell the training classes apart. Other domains need the
other directions, too.
"""
from __future__ import annotations

from torch import Tensor

from .parts.encoded import EncodedCallback

__all__ = ['BSRCallback', 'spectral_penalty']


def spectral_penalty(
    features: Tensor, # Of a batch `(n, d)`
) -> Tensor:
    "The sum of the squared singular values, which is that of all squared entries: nothing has to be decomposed"
    return features.square().sum()


class BSRCallback(EncodedCallback):
    """Train with L + λ·Σσ², σ the singular values of the averaged features of all images of a step (Liu et al. 2020, equation 3).

    Published for the plain classification that pre-trains an encoder, `learn.pretrain_encoder(cbs=BSRCallback())`; in an episode
    it regards support and queries together. For any backbone. Does nothing under `lr_find`; `ValueError` for a compiled model.
    """
    def __init__(self,
        lam: float = 1e-3, # λ
        images: int | None = None, # That λ is meant for; None: as published, where a larger batch is penalised more
    ):
        if images is not None and images < 1: raise ValueError(f'BSRCallback(images={images}): at least 1, published are 16')
        self.lam, self.images = lam, images

    def after_loss(self):
        features = self.vectors()
        share = 1. if self.images is None else self.images / features.shape[0]
        self.add_loss(self.lam * share * spectral_penalty(features))
