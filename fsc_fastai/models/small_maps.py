"Convolutions on maps of a few positions, as relation modules have them: on a CPU, most of their time is the weight's gradient"
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.grad import conv2d_input
from torch.overrides import has_torch_function

__all__ = ['SmallConv2d', 'conv_small']

LARGEST = 4 # Side of a map for which matrix products win


def conv_small(
    x: Tensor, # Maps `(n, n_in, H, W)`
    weight: Tensor, # `(n_out, n_in, height, width)`
    bias: Tensor | None = None, # `(n_out,)`
    padding: Any = 0, # One number, or one for each side
) -> Tensor:
    "`F.conv2d` with stride 1; on a CPU the weight's gradient of a small map is one matrix product for each of its positions"
    if not _worthwhile(x, weight): return F.conv2d(x, weight, bias, padding=padding)
    y = _Conv.apply(x, weight, (padding, padding) if isinstance(padding, int) else padding)
    return y if bias is None else y + bias[:, None, None]


class SmallConv2d(nn.Conv2d):
    "A convolution with stride 1 by `conv_small`"
    def forward(self, x: Tensor) -> Tensor:
        "Maps `(n, n_in, H, W)` to `(n, n_out, H', W')`"
        return conv_small(x, self.weight, self.bias, self.padding)


def _worthwhile(x: Tensor, weight: Tensor) -> bool:
    # whatever replaces operations (relevance, compilers, autocast) has to meet an ordinary convolution
    if has_torch_function((x, weight)) or torch.compiler.is_compiling() or torch.is_autocast_enabled('cpu'): return False
    return x.device.type == 'cpu' and max(x.shape[-2:]) <= LARGEST and torch.is_grad_enabled() and weight.requires_grad


class _Conv(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, padding=padding)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        to_x = conv2d_input(x.shape, weight, g, padding=ctx.padding) if ctx.needs_input_grad[0] else None
        return to_x, _weight_gradient(x, g, weight.shape, ctx.padding), None


def _weight_gradient(x: Tensor, g: Tensor, shape: torch.Size, padding: tuple[int, int]) -> Tensor:
    "∂w[:, :, i, j] = Σ over the positions that meet there of g·x"
    x, g = x.permute(2, 3, 0, 1).contiguous(), g.permute(2, 3, 0, 1).contiguous()
    taps = [[_product(x, g, i - padding[0], j - padding[1]) for j in range(shape[3])] for i in range(shape[2])]
    return torch.stack([torch.stack(row, -1) for row in taps], -2)


def _product(x: Tensor, g: Tensor, down: int, right: int) -> Tensor:
    "g at each position times x `down` and `right` of it, summed over positions and images"
    rows, columns = _overlap(g.shape[0], x.shape[0], down), _overlap(g.shape[1], x.shape[1], right)
    of_g = g[rows, columns]
    of_x = x[rows.start + down:rows.stop + down, columns.start + right:columns.stop + right]
    return of_g.flatten(0, 2).T @ of_x.flatten(0, 2)


def _overlap(n_g: int, n_x: int, offset: int) -> slice:
    start = max(0, -offset)
    return slice(start, max(start, min(n_g, n_x - offset)))
