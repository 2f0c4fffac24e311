"Styles of feature maps: the mean and standard deviation of every channel of an image"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...tensors import full_precision, single

__all__ = ['Style', 'style', 'restyle', 'restyle_low', 'low_band', 'kl', 'half_way_kl', 'viewed_tokens', 'viewed_back']

Style = tuple[Tensor, Tensor]
"Mean and standard deviation of each channel of each image, both `(n, C, 1, 1)`"


def style(
    x: Tensor, # Feature maps `(n, C, H, W)`
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation √(var + 1e-5) of each channel of each image, both `(n, C, 1, 1)`, in single precision at least.

    The variance has divisor H·W − 1, as in the published code of StyleAdv and wave-SAN. Raises `ValueError` for maps of 1×1.
    """
    if x.shape[-2] * x.shape[-1] < 2:
        raise ValueError(f'Feature maps of shape {tuple(x.shape)} have one position, and so no style: use larger images, or name '
                         'earlier blocks (blocks=[…])')
    with full_precision(x):
        positions = single(x).flatten(2)
        std = (positions.var(2) + 1e-5).sqrt()
        return positions.mean(2)[..., None, None], std[..., None, None]


def restyle(
    x: Tensor, # Feature maps `(n, C, H, W)`
    mean: Tensor, # New means `(n, C, 1, 1)`, or those of the first images
    std: Tensor, # New standard deviations, for as many images
) -> Tensor:
    "The maps with another style: (x − m)/s · std + mean; gradients also pass through their own m and s"
    n = mean.shape[0]
    if n < x.shape[0]: return torch.cat([restyle(x[:n], mean, std), x[n:]])
    with full_precision(x):
        m, s = style(x)
        return ((single(x) - m) / s * std + mean).to(x.dtype)


def low_band(
    x: Tensor, # Maps `(n, C, H, W)` of even sides
) -> Tensor:
    "The low band of the orthonormal Haar transform `(n, C, H/2, W/2)`: half the sum of each 2×2 square"
    return 2 * F.avg_pool2d(x, 2)


def restyle_low(
    x: Tensor, # Maps `(n, C, H, W)`; odd sides are padded with zeros at the end, also in the result
    like: Tensor, # Maps of the same shape, whose style is a constant
) -> Tensor:
    "The maps with the style of `like` in their low band; high bands are unchanged (Fu et al. 2022, wave-SAN)"
    pad = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
    x, like = F.pad(x, pad), F.pad(like.detach(), pad)
    low = low_band(x)
    changed = restyle(low, *style(low_band(like)))
    # the transform is orthonormal: what changes in the low band is spread over its square
    return x + F.interpolate(changed - low, scale_factor=2) / 2


def kl(
    p: Tensor, # Scores `(n, n_way)`, or `(n, n_way, H, W)`
    q: Tensor, # Scores of the same shape
) -> Tensor:
    "KL(P ‖ Q) of softmax probabilities, averaged over queries and positions; gradients reach both arguments"
    with full_precision(p):
        log_p, log_q = single(p).log_softmax(1), single(q).log_softmax(1)
        return (log_p.exp() * (log_p - log_q)).sum(1).mean()


def half_way_kl(
    p: Tensor, # Scores `(n, n_way)`, or `(n, n_way, H, W)`
    q: Tensor, # Scores of the same shape
) -> Tensor:
    "Half of KL(P ‖ R) + KL(Q ‖ R), where R is the softmax of the mean of the scores"
    r = (p + q) / 2
    return (kl(p, r) + kl(q, r)) / 2


def viewed_tokens(
    tokens: Tensor, # `(n, n_prefix + side², d)`
    n_prefix: int = 1, # Class and register tokens, at the start
) -> Tensor:
    """Patch tokens as maps `(n, d, side, side)`, as in the ViT version of StyleAdv.

    Tokens are viewed, not transposed: a channel consists of side² consecutive numbers, which mix patches and dimensions. Raises
    `ValueError` for patches that form no square.
    """
    n, length, d = tokens.shape
    side = round((length - n_prefix)**.5)
    if side**2 != length - n_prefix: raise ValueError(f'{length - n_prefix} patches form no square: use square images')
    return tokens[:, n_prefix:].reshape(n, d, side, side)


def viewed_back(
    maps: Tensor, # Changed maps of `viewed_tokens`
    tokens: Tensor, # The tokens that they come from
    n_prefix: int = 1, # Class and register tokens, at the start
) -> Tensor:
    "Tokens with the changed patches; prefix tokens are unchanged"
    return torch.cat([tokens[:, :n_prefix], maps.reshape(tokens.shape[0], -1, tokens.shape[2])], 1)
