"Mosaics, which show where a class is: an image in one quarter, images of other classes in the others"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['mosaics']


def mosaics(
    x: Tensor, # Images `(n, channels, height, width)`
    y: Tensor, # Their classes `(n,)`, at least two
    seed: int = 0, # Seed of places and neighbours
) -> tuple[Tensor, Tensor]:
    """A mosaic for each image: the image at half size in one quarter, images of other classes in the other three.

    Returns the mosaics in the shape of `x` and boolean masks of the image itself `(n, height, width)`. A random map has a quarter
    of its relevance there. Raises `ValueError` if all images are of one class.
    """
    generator = torch.Generator().manual_seed(seed)
    h, w = x.shape[-2:]
    rows, columns = -(-h // 2), -(-w // 2)
    small = F.interpolate(x, (rows, columns), mode='bilinear', antialias=True, align_corners=False)
    quarters = (torch.arange(h) >= rows).long()[:, None] * 2 + (torch.arange(w) >= columns).long()
    pictures, masks = [], []
    for i, own in enumerate(y.tolist()):
        others = [j for j, c in enumerate(y.tolist()) if c != own]
        if not others: raise ValueError('a mosaic needs images of two classes at least')
        place = int(torch.randint(4, (), generator=generator))
        drawn = [others[k] for k in torch.randperm(len(others), generator=generator)[:3].tolist()]
        tiles = [drawn[k % len(drawn)] for k in range(3)]
        tiles.insert(place, i)
        a, b, c, d = small[tiles]
        pictures.append(torch.cat([torch.cat([a, b], -1), torch.cat([c, d], -1)], -2)[..., :h, :w])
        masks.append(quarters == place)
    return torch.stack(pictures), torch.stack(masks).to(x.device)
