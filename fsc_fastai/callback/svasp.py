"The attack of SVasP: adversarial styles whose gradient is that of the image less that of its crops (Li et al. 2025)"
from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .parts.styles import Style
from .styleadv import StyleAdvCallback

__all__ = ['SVasPCallback', 'normalised', 'random_crops']


def normalised(
    grad: Tensor, # Gradient by a mean or standard deviation `(n, C, 1, 1)`
) -> Tensor:
    "The gradient over the mean of its absolute values in the image's channels; 0 where all are, where the published code has nan"
    return grad / grad.abs().mean(1, keepdim=True).clamp(torch.finfo(grad.dtype).tiny)


def random_crops(
    images: Tensor, # `(n, C, H, W)`
    low: float, # Least side of a crop
    high: float, # Largest side
) -> Tensor:
    "A crop of each image, its side and place drawn uniformly, brought to the size of the image"
    n = images.shape[0]
    side = low + (high - low) * torch.rand(n, 1, device=images.device)
    shift = (1 - side) * (2 * torch.rand(n, 2, device=images.device) - 1)
    theta = torch.cat([torch.diag_embed(side.expand(n, 2)), shift[..., None]], 2).to(images.dtype)
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)


class SVasPCallback(StyleAdvCallback):
    """`StyleAdvCallback` with the attack of SVasP.

    Crops of every image go through the blocks beside it, with styles of their own. The attack follows the sign of
    ĝ − `decay`·ĝ_crops: the gradient of the image and the mean of those of its crops, each `normalised`. It starts from noise,
    and draws a length for the mean and one for the standard deviation. The rest is StyleAdv: SVasP's losses of crops and its
    domain discriminator are left out. Number and sides of the crops are ours.
    """
    def __init__(self,
        n_crops: int = 2, # Crops of each image
        decay: float = .1, # Weight of the gradients of the crops
        sides: tuple[float, float] = (.3, .7), # Least and largest side of a crop, as parts of the image's
        p_skip: float = .2, # Probability that a block keeps its style in the attacked pass
        **kwargs, # For `StyleAdvCallback`
    ):
        super().__init__(p_skip=p_skip, **({'start': 'gaussian'} | kwargs))
        self.n_crops, self.decay, self.sides = n_crops, decay, sides

    def draw(self) -> tuple[list[Sequence[float]], list[bool]]:
        "As of StyleAdv, but the two lengths of a block are drawn apart"
        return [random.choices(self.epsilons, k=2) for _ in self.names], super().draw()[1]

    def attack(self, images: Tensor, y: Tensor, epsilons: Sequence[Sequence[float]]) -> dict[str, Style]:
        "The attacked style of the images after each block; their crops are the same at all blocks"
        crops = [random_crops(images, *self.sides) for _ in range(self.n_crops)]
        return super().attack(torch.cat([images, *crops]), y.repeat(1 + self.n_crops), epsilons)

    def gradients(self, images: Tensor, y: Tensor, block: str, styles: Mapping[str, Style]) -> tuple[Sequence[Tensor], ...]:
        "Mean and standard deviation of the images after a block, and the direction that the attack on each follows"
        n = images.shape[0] // (1 + self.n_crops)
        leaves, grads = super().gradients(images, y, block, styles)
        return [s[:n] for s in leaves], [self.direction(g[:n], g[n:].unflatten(0, (self.n_crops, n))) for g in grads]

    def direction(self,
        grad: Tensor, # Of the images `(n, C, 1, 1)`
        crop_grads: Tensor, # Of their crops `(n_crops, n, C, 1, 1)`
    ) -> Tensor:
        "ĝ − decay·ĝ_crops"
        return normalised(grad) - self.decay * normalised(crop_grads.mean(0))
