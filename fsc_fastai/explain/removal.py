"Removal of patches of pixels: the order of removal, and the values that replace them"
from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

__all__ = ['Replace', 'replacement', 'patch_relevance', 'removal_ranks', 'removed']

Replace = Literal['mean', 'blur', 'noise']


def replacement(
    x: Tensor, # Images `(..., channels, height, width)`
    replace: Replace = 'mean', # By each image's mean colour, by the image blurred, or by noise of its mean and spread
    seed: int = 0, # Seed of the noise
) -> Tensor:
    "The value that replaces each removed pixel, in the shape of `x`. Raises `ValueError` for an unknown `replace`"
    if replace not in get_args(Replace): raise ValueError(f'replace={replace!r}: choose from {get_args(Replace)}')
    mean = x.mean((-2, -1), keepdim=True)
    if replace == 'mean': return mean.expand_as(x)
    if replace == 'blur':
        side = min(x.shape[-2:])
        kernel = 2 * ((side - 1) // 2) - 1 # odd, and so small that the border can be mirrored
        return gaussian_blur(x.flatten(0, -4), [max(1, kernel)] * 2, [side / 10] * 2).view_as(x)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    return mean + x.std((-2, -1), keepdim=True) * noise


def patch_relevance(
    heat: Tensor, # Relevance of pixels `(..., height, width)`
    patch: int = 1, # Side of the patches
) -> Tensor:
    "Relevance of patches `(..., ⌈height/patch⌉, ⌈width/patch⌉)`, summed over their pixels; edge patches may be smaller"
    maps = heat.flatten(0, -3)[:, None]
    return F.avg_pool2d(maps, patch, ceil_mode=True, divisor_override=1).view(*heat.shape[:-2], -(-heat.shape[-2] // patch), -1)


def removal_ranks(
    heat: Tensor, # Relevance of patches `(n, ...)`
) -> Tensor:
    "The order in which the patches of a row are removed, in the shape of `heat`; 0 is the most relevant patch"
    order = heat.flatten(1).argsort(dim=1, descending=True, stable=True)
    return order.argsort(1).view_as(heat)


def removed(
    x: Tensor, # Images `(n, ..., channels, height, width)`
    filler: Tensor, # Values of removed pixels, in the shape of `x`
    gone: Tensor, # The patches to remove `(n, ..., rows, columns)`, bool
    patch: int, # Side of the patches
) -> Tensor:
    "The images without these patches"
    h, w = x.shape[-2:]
    pixels = gone.repeat_interleave(patch, -2).repeat_interleave(patch, -1)[..., :h, :w]
    return torch.where(pixels.unsqueeze(-3), filler, x)
