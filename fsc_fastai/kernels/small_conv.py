"""Convolutions on small maps, such as those of relation modules, by one matrix product for each tap of the kernel.

This halves their time on a CPU, because the products leave out positions that meet the padding, as most taps of a 3×3 kernel do
on a 3×3 map.
"""
from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input
from torch.overrides import has_torch_function

from ..as_built import as_built, blueprint

__all__ = ['SmallConv2d', 'KeptKernel', 'conv_small', 'conv_small_input']

LARGEST = 4 # Largest side of a map for which matrix products are faster
FEWEST = 16 # Fewest maps for which rearranging the kernel at every call pays

Pair = tuple[int, int]


def conv_small(
    x: Tensor, # Maps `(n, n_in, H, W)`
    weight: Tensor, # `(n_out, n_in, height, width)`
    bias: Tensor | None = None, # `(n_out,)`
    padding: Any = 0, # One number, or one for each side
) -> Tensor:
    "`F.conv2d` with stride 1, by matrix products where these are faster"
    if not _worthwhile(x, weight): return F.conv2d(x, weight, bias, padding=padding)
    y = _turned(_sum_of_taps(_turned(x), _turned(weight.transpose(0, 1)), _pair(padding)))
    return y if bias is None else y + bias[:, None, None]


def conv_small_input(
    size: torch.Size, # Size of the input `(n, n_in, H, W)`
    weight: Tensor, # `(n_out, n_in, height, width)`
    g: Tensor, # Gradient of the output `(n, n_out, H', W')`
    padding: Any = 0, # One number, or one for each side
) -> Tensor:
    "`torch.nn.grad.conv2d_input`: the transposed convolution, by matrix products where these are faster"
    if not _worthwhile(g, weight): return conv2d_input(size, weight, g, padding=padding)
    # a convolution with the kernel turned over
    overhang = [side - 1 - p for side, p in zip(weight.shape[2:], _pair(padding), strict=True)]
    return conv_small(g, weight.transpose(0, 1).flip(2, 3), padding=overhang)


class SmallConv2d(nn.Conv2d):
    "A convolution with stride 1 by `conv_small`"
    def __init__(self,
        n_in: int, # Channels in
        n_out: int, # Channels out
        kernel_size: int, # Side of the kernel
        padding: int = 0, # Padding on every side
    ):
        super().__init__(n_in, n_out, kernel_size, padding=padding)
        self.blueprint = blueprint(self)

    def forward(self, x: Tensor) -> Tensor:
        "Maps `(n, n_in, H, W)` to `(n, n_out, H', W')`"
        if not as_built(self, SmallConv2d): return super().forward(x)
        return conv_small(x, self.weight, self.bias, self.padding)


class KeptKernel:
    """A convolution with stride 1 whose weights are read and rearranged once, for many calls with few maps.

    A 3×3 kernel with padding 1 takes 9 matrix products on a map of 2×2, not 16. Along one axis

        y₀ = w₁x₀ + w₂x₁ = w₁(x₀ + x₁) + (w₂ − w₁)x₁
        y₁ = w₀x₀ + w₁x₁ = w₁(x₀ + x₁) + (w₀ − w₁)x₀

    are three products, the first of them shared (Karatsuba's trick), and so along the other.
    """
    def __init__(self,
        weight: Tensor, # `(n_out, n_in, height, width)`
        bias: Tensor | None = None, # `(n_out,)`
        padding: Any = 0, # One number, or one for each side
    ):
        self.weight, self.bias, self.padding = weight, bias, _pair(padding)
        self.taps = _turned(weight.transpose(0, 1))
        of_2x2 = self.taps.shape[:2] == (3, 3) and self.padding == (1, 1)
        self.of_2x2 = _along_both(self.taps, lambda w: (w[1], w[2] - w[1], w[0] - w[1])).flatten(0, 1) if of_2x2 else None

    def __call__(self, x: Tensor) -> Tensor:
        "Maps `(n, n_in, H, W)` to `(n, n_out, H', W')`, channels last where they are small"
        if not _worthwhile(x, self.weight, fewest=1): return F.conv2d(x, self.weight, self.bias, padding=self.padding)
        turned = _turned(x)
        if self.of_2x2 is None or x.shape[2:] != (2, 2): y = _sum_of_taps(turned, self.taps, self.padding)
        else:
            factors = _along_both(turned, lambda x: (x[0] + x[1], x[1], x[0])).flatten(0, 1)
            y = _along_both(torch.bmm(factors, self.of_2x2).unflatten(0, (3, 3)), lambda m: (m[0] + m[1], m[0] + m[2]))
        if self.bias is not None: y = y + self.bias
        return y.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def _along_both(t: Tensor, f: Callable[[Tensor], tuple[Tensor, ...]]) -> Tensor:
    "What `f` makes of the entries along the first axis, then along the second"
    return torch.stack(f(torch.stack(f(t)).transpose(0, 1))).transpose(0, 1)


def _pair(padding: Any) -> Pair: return (padding, padding) if isinstance(padding, int) else tuple(padding)


def _worthwhile(x: Tensor, weight: Tensor, fewest: int = FEWEST) -> bool:
    # whatever replaces operations (relevance, compilers, autocast) has to meet an ordinary convolution
    if has_torch_function((x, weight)) or torch.compiler.is_compiling() or torch.is_autocast_enabled('cpu'): return False
    precise = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
    return precise and x.device.type == 'cpu' and len(x) >= fewest and max(x.shape[-2:]) <= LARGEST


def _overlap(n_y: int, n_x: int, offset: int) -> slice:
    "The positions of an output whose input at this offset is within the map"
    start = max(0, -offset)
    return slice(start, max(start, min(n_y, n_x - offset)))


def _turned(t: Tensor) -> Tensor:
    "Maps `(n, C, H, W)` to `(H, W, n, C)`, a kernel `(n_out, n_in, height, width)` to `(height, width, n_out, n_in)`; and back"
    return t.permute(2, 3, 0, 1).contiguous()


def _sum_of_taps(x: Tensor, weight: Tensor, padding: Pair) -> Tensor:
    "Maps `(H, W, n, n_in)` and a kernel `(height, width, n_in, n_out)` to `(H', W', n, n_out)`: Σ of w·x over the taps"
    sides = [n + 2 * p - k + 1 for n, p, k in zip(x.shape[:2], padding, weight.shape[:2], strict=True)]
    y = x.new_zeros(*sides, x.shape[2], weight.shape[3])
    for (i, j), w in zip(product(*map(range, weight.shape[:2])), weight.flatten(0, 1).unbind(), strict=True):
        down, right = i - padding[0], j - padding[1]
        rows, columns = _overlap(sides[0], x.shape[0], down), _overlap(sides[1], x.shape[1], right)
        meets = x[rows.start + down:rows.stop + down, columns.start + right:columns.stop + right]
        # one large product: a product for each position, as matmul chooses, is several times slower on two threads
        if meets.numel(): y[rows, columns] += (meets.flatten(0, 2) @ w).view_as(y[rows, columns])
    return y
