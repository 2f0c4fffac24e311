"Small crops of the images of an episode"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['local_crops']


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
