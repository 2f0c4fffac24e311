"Images of which it is known where a class is: its picture among three of other classes"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['mosaics']


def mosaics(
    x: Tensor, # Images `(n, channels, height, width)`
    y: Tensor, # Their classes `(n,)`, two at least
    seed: int = 0, # Of places and neighbours
) -> tuple[Tensor, Tensor]:
    """Each image at half its size in one quarter of a picture as large, with images of other classes in the other three.

    Returns the pictures in the shape of `x`, and where the image itself is `(n, height, width)`, bool: a quarter of the picture,
    so that a map without knowledge has a quarter of its relevance there. Raises `ValueError` where all are of one class.
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
