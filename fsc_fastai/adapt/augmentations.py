"Augmentations of the support by two published adaptations, on normalised pixels; random numbers are arguments"
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import RandomErasing

__all__ = ['brightness', 'saturation', 'contrast', 'translation', 'pmf_augment', 'gamma', 'channels', 'rotate', 'ata_augment']


# For batches `(n, C, H, W)` with a number u in 0–1 for each image `(n,)`: Hu et al. 2022 (PMF), after Zhao et al. 2020

def _each(u: Tensor) -> Tensor: return u[:, None, None, None]


def brightness(x: Tensor, u: Tensor) -> Tensor:
    "Shift each image: x + u − ½"
    return x + _each(u) - 0.5


def saturation(x: Tensor, u: Tensor) -> Tensor:
    "Scale the difference of each pixel from grey, its mean over the channels, by 2u"
    grey = x.mean(1, keepdim=True)
    return grey + 2 * _each(u) * (x - grey)


def contrast(x: Tensor, u: Tensor) -> Tensor:
    "Scale the difference of each pixel from the mean of its image by u + ½"
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (_each(u) + 0.5) * (x - mean)


def translation(
    x: Tensor, # Images `(n, C, H, W)`
    rows: Tensor, # Rows by which each image moves up `(n,)`
    columns: Tensor, # Columns by which each image moves left `(n,)`
) -> Tensor:
    "Shift each image: out[r, c] = x[r + rows, c + columns], 0 outside"
    height, width = x.shape[-2:]
    r, c = (torch.arange(size, device=x.device) + shift[:, None] for size, shift in ((height, rows), (width, columns)))
    inside = ((r >= 0) & (r < height))[:, :, None] & ((c >= 0) & (c < width))[:, None]
    image = torch.arange(len(x), device=x.device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[image, r.clamp(0, height - 1)[:, :, None], c.clamp(0, width - 1)[:, None]]
    return (moved * inside[..., None]).permute(0, 3, 1, 2)


def pmf_augment(
    x: Tensor, # Images `(n, C, H, W)`
    prob: float = 0.9, # Probability of augmenting the batch
) -> Tensor:
    "Flip all images or none, then change brightness, saturation and contrast and shift each image (Hu et al. 2022)"
    if torch.rand(()) >= prob: return x
    if torch.rand(()) < 0.5: x = x.flip(-1)
    n = len(x)
    for change in (brightness, saturation, contrast): x = change(x, torch.rand(n, device=x.device))
    far = [int(size / 8 + 0.5) for size in x.shape[-2:]]
    return translation(x, *(torch.randint(-s, s + 1, (n,), device=x.device) for s in far))


# For one image `(C, H, W)`: Wang and Deng 2021 (ATA)

def gamma(
    x: Tensor, # An image `(C, H, W)`
    power: float, # The exponent; 1 changes nothing
) -> Tensor:
    "Raise the image, scaled to 0–1 by its own minimum and maximum, to a power, and scale it back"
    low, high = x.amin(), x.amax()
    size = high - low
    return torch.where(size > 0, ((x - low) / torch.where(size > 0, size, 1.))**power * size + low, x)


def channels(
    x: Tensor, # An image `(C, H, W)`
    places: Sequence[int], # The new place of each channel
) -> Tensor:
    "Permute the channels: channel i moves to `places[i]`"
    return x[torch.as_tensor(places).argsort()]


def rotate(
    x: Tensor, # An image `(C, H, W)`
    quarters: int, # Number of turns by 90°
) -> Tensor:
    "Turn the image counterclockwise; one that is not square only by multiples of 180°, because its shape must stay"
    return torch.rot90(x, quarters if x.shape[1] == x.shape[2] else 2 * (quarters // 2), (1, 2))


def ata_augment(
    x: Tensor, # An image `(C, H, W)`
) -> Tensor:
    "Gamma, erasing, channel shuffle, flip and rotation, each with its own probability (CDFSL-ATA, `finetune_ml.py`)"
    chance = lambda p: bool(torch.rand(()) < p)
    if chance(0.3): x = gamma(x, 1 + 0.5 * float(torch.rand(())))
    if chance(0.5): x = RandomErasing(p=1., value=x.mean((1, 2)).tolist())(x)
    if chance(0.3): x = channels(x, torch.randperm(len(x)).tolist())
    if chance(0.5): x = x.flip(1 + int(torch.randint(2, ())))  # upside down, or left and right
    if chance(0.5): x = rotate(x, 1 + int(torch.randint(3, ())))
    return x
