"The attack of SVasP: adversarial styles by the gradient of an image minus that of its crops (Li et al. 2025)"
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
    grad: Tensor, # Gradient with respect to means or standard deviations `(n, C, 1, 1)`
) -> Tensor:
    "The gradient divided by its mean absolute value over the channels; 0 where all are 0, where the published code has nan"
    return grad / grad.abs().mean(1, keepdim=True).clamp(torch.finfo(grad.dtype).tiny)


def random_crops(
    images: Tensor, # `(n, C, H, W)`
    low: float, # Least side of a crop
    high: float, # Largest side
) -> Tensor:
    "A random crop of each image, of uniform side and position, resized to the image `(n, C, H, W)`"
    n = images.shape[0]
    side = low + (high - low) * torch.rand(n, 1, device=images.device)
    shift = (1 - side) * (2 * torch.rand(n, 2, device=images.device) - 1)
    theta = torch.cat([torch.diag_embed(side.expand(n, 2)), shift[..., None]], 2).to(images.dtype)
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)


class SVasPCallback(StyleAdvCallback):
    """`StyleAdvCallback` with the attack of SVasP.

    Crops of every image pass through the blocks with styles of their own. The attack follows the sign of ĝ − `decay`·ĝ_crops,
    the gradient of the image and the mean of those of its crops, each `normalised`. It starts from noise and draws separate step
    sizes for mean and standard deviation. Everything else is StyleAdv: SVasP's losses of crops and its domain discriminator are
    not implemented. Number and sides of the crops are our choice.
    """
    def __init__(self,
        n_crops: int = 2, # Crops of each image
        decay: float = .1, # Weight of the gradients of the crops
        sides: tuple[float, float] = (.3, .7), # Least and largest side of a crop, relative to the image
        p_skip: float = .2, # Probability that a block keeps its style in the attacked pass
        **kwargs, # For `StyleAdvCallback`
    ):
        super().__init__(p_skip=p_skip, **({'start': 'gaussian'} | kwargs))
        self.n_crops, self.decay, self.sides = n_crops, decay, sides

    def draw(self) -> tuple[list[Sequence[float]], list[bool]]:
        "As in StyleAdv, but with separate step sizes for mean and standard deviation"
        return [random.choices(self.epsilons, k=2) for _ in self.names], super().draw()[1]

    def attack(self, images: Tensor, y: Tensor, epsilons: Sequence[Sequence[float]]) -> dict[str, Style]:
        "The attacked style of the images after each block; all blocks use the same crops"
        crops = [random_crops(images, *self.sides) for _ in range(self.n_crops)]
        return super().attack(torch.cat([images, *crops]), y.repeat(1 + self.n_crops), epsilons)

    def gradients(self, images: Tensor, y: Tensor, block: str, styles: Mapping[str, Style]) -> tuple[Sequence[Tensor], ...]:
        "Mean and standard deviation of the images after a block, and the direction of the attack on each"
        n = images.shape[0] // (1 + self.n_crops)
        leaves, grads = super().gradients(images, y, block, styles)
        return [s[:n] for s in leaves], [self.direction(g[:n], g[n:].unflatten(0, (self.n_crops, n))) for g in grads]

    def direction(self,
        grad: Tensor, # Gradient of the images `(n, C, 1, 1)`
        crop_grads: Tensor, # Gradients of their crops `(n_crops, n, C, 1, 1)`
    ) -> Tensor:
        "The direction ĝ − decay·ĝ_crops `(n, C, 1, 1)`"
        return normalised(grad) - self.decay * normalised(crop_grads.mean(0))
