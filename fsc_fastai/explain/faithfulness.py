"""Is a heatmap faithful? How the score changes when pixels are removed in the order of their relevance.

Pure functions: of images `(n, channels, height, width)`, their heatmaps `(n, height, width)` and a function that scores images.
Where a row is a set of images, such as the support images of a class, both have one more dimension: `(n, m, channels, height,
width)` and `(n, m, height, width)`; patches of all m images then compete for the first places.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from fastcore.basics import chunked
from torch import Tensor

from .removal import Replace, patch_relevance, removal_ranks, removed, replacement

__all__ = ['Curves', 'removal_curve', 'removal_curves', 'random_ranks', 'area']

Score = Callable[[Tensor], Tensor] # The images that are explained, changed, several times over `(k·n, ...)`, to scores `(k·n,)`
AT_ONCE = 64 # Images to score at once


class Curves(NamedTuple):
    """Scores `(n, steps + 1)` while patches are removed, from none of them to all.

    Insertion, which puts back the most relevant patches first, is `reverse` read from its end: the images and the area under the
    curve are the same.
    """
    forward: Tensor # The most relevant patch first
    reverse: Tensor # The least relevant one first
    random: Tensor # A random order

    @property
    def insertion(self) -> Tensor:
        "Scores while patches are put back, from none to all, the most relevant one first"
        return self.reverse.flip(1)


def area(
    curve: Tensor, # Scores `(n, steps + 1)`, in equal steps
) -> Tensor:
    """The area under each curve over the share of patches from 0 to 1, by trapezoids: its mean score `(n,)`.

    >>> area(torch.tensor([[1., .5, 0.], [1., 0., 0.]]))
    tensor([0.5000, 0.2500])
    """
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1), dim=1)


def random_ranks(
    shape: tuple[int, ...], # Shape of the patches `(n, ...)`
    seed: int = 0, # Seed of the order
) -> Tensor:
    "A random order of removal for each row, in the given shape"
    return removal_ranks(torch.rand(shape, generator=torch.Generator().manual_seed(seed)))


@torch.no_grad()
def removal_curve(
    score: Score, # Called with all rows, and several steps at once
    x: Tensor, # Images
    ranks: Tensor, # Order of removal `(n, ..., rows, columns)`, see `removal_ranks`
    filler: Tensor, # Values of removed pixels, in the shape of `x`
    patch: int, # Side of the patches
    steps: int = 10, # Equal steps from no patch to all
) -> Tensor:
    "Scores `(n, steps + 1)` while patches are removed in this order. Raises `ValueError` for more steps than patches"
    n_patches = ranks[0].numel()
    if not 1 <= steps <= n_patches: raise ValueError(f'steps={steps}: from 1 to the number of patches, {n_patches}')
    ranks = ranks.to(x.device)
    def images(k: int) -> Tensor: return removed(x, filler, ranks < round(k * n_patches / steps), patch)
    together = chunked(range(steps + 1), max(1, AT_ONCE // x.shape[:-3].numel()))
    return torch.cat([score(torch.cat([images(k) for k in ks])) for ks in together]).unflatten(0, (steps + 1, len(x))).T


def removal_curves(
    score: Score, # Scores 2·(steps + 1) images for each, and steps + 1 more for the random order
    x: Tensor, # Images
    heat: Tensor, # Their heatmaps
    patch: int = 8, # Side of the patches; 1: pixels
    steps: int = 10, # Equal steps from no patch to all
    replace: Replace = 'mean', # By each image's mean colour, by 'blur' or 'noise'
    seed: int = 0, # Of the random order, and of noise
    random: Tensor | None = None, # The curve in random order, if it is known already
) -> Curves:
    """Scores while patches are removed in the order of their relevance (Samek et al. 2017; Petsiuk et al. 2018).

    With a faithful map `forward` falls at once and `reverse` stays high. The area between them does not depend on how many
    patches matter; `random` is the reference for both.
    """
    filler, patches = replacement(x, replace, seed), patch_relevance(heat, patch)
    def in_order(ranks: Tensor) -> Tensor: return removal_curve(score, x, ranks, filler, patch, steps)
    if random is None: random = in_order(random_ranks(tuple(patches.shape), seed))
    return Curves(in_order(removal_ranks(patches)), in_order(removal_ranks(-patches)), random)
