"""Batch norms whose gradient can be differentiated in a few passes over the maps.

With x̂ = r(x − x̄), r = 1/√(var x + ε), means over a channel, and the projection Pv = v − v̄ − x̂·mean(v x̂), the gradients of
y = w x̂ + b for a gradient g of y are

    ∂x = w r Pg    ∂w = Σ g x̂    ∂b = Σ g

and theirs, for gradients u of ∂x, a of ∂w and c of ∂b, are, with A = mean(u x̂), B = mean(g x̂), C = mean(u g) − ū ḡ − AB,

    ∂g = w r Pu + a x̂ + c    ∂w = Σ r C    ∂x = r((a − w r A) Pg − w r (B Pu + C x̂))
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

__all__ = ['batch_norm', 'quick_second_derivative']


def batch_norm(
    x: Tensor, # `(n, C, ...)`
    running_mean: Tensor | None, # Updated in training, if given
    running_var: Tensor | None, # Updated in training, if given
    weight: Tensor | None = None, # `(C,)`
    bias: Tensor | None = None, # `(C,)`
    training: bool = False, # Use the statistics of `x`; False: running statistics
    momentum: float = .1, # Momentum of the running statistics
    eps: float = 1e-5, # Added to the variance
) -> Tensor:
    "`F.batch_norm` with a fast second derivative, and no third one, if it uses the statistics of `x`"
    quick = training and torch.is_grad_enabled() and weight is not None and bias is not None
    # a subclass may mean something else by it, and a single value a channel is an error that PyTorch words
    if not quick or type(x) is not Tensor or x.numel() <= x.shape[1]:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return _Normalised.apply(x, weight, bias, running_mean, running_var, momentum, eps)


@contextmanager
def quick_second_derivative(
    model: nn.Module, # A model with batch norms, also timm's
) -> Iterator[None]:
    "Run the batch norms of `model` by `batch_norm` inside the block"
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and 'forward' not in vars(m)]
    for m in norms: m.forward = _by_batch_norm(m.forward)  # type: ignore[method-assign]
    try: yield
    finally:
        for m in norms: del m.forward


def _by_batch_norm(forward: Any) -> Any:
    def quick(*args: Any, **kwargs: Any) -> Any:
        # around each norm, not around the model, where every operation would pass through Python
        with _Quick(): return forward(*args, **kwargs)
    quick.as_built = True # type: ignore[attr-defined]  # the same values
    return quick


class _Quick(TorchFunctionMode):
    "`batch_norm` in the place of `F.batch_norm`"
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return (batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


class _Normalised(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
                momentum: float, eps: float) -> Tensor:
        y, mean, r = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, r)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        return *_Gradients.apply(g, *ctx.saved_tensors), None, None, None, None


class _Gradients(Function):
    "∂x, ∂w and ∂b for g"
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor) -> tuple:
        of_x, of_weight, of_bias = _gradients(g, x, weight, mean, r)
        ctx.save_for_backward(g, x, weight, mean, r, of_weight, of_bias)
        return of_x, of_weight, of_bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor, a: Tensor, c: Tensor) -> tuple:
        g, x, weight, mean, r, g_xhat, g_sum = ctx.saved_tensors
        m, shape = x.numel() // x.shape[1], (-1, *[1] * (x.ndim - 2))
        wrPu, u_xhat, u_sum = _gradients(u, x, weight, mean, r)
        u_g = (u.to(mean.dtype) * g).sum([0, *range(2, x.ndim)])
        A, B, wr = u_xhat / m, g_xhat / m, weight * r
        C = torch.addcmul(u_g / m, A, B, value=-1).addcmul_(u_sum, g_sum, value=-1 / m**2)
        # x̂ = r·x − r·x̄ and Pg = g − ḡ − B·x̂: with one factor a channel for each map, and a rest, every map is read once
        of_P, x_in_g = torch.addcmul(a, wr, A, value=-1) * r, a * r
        rest = torch.addcmul(c, x_in_g, mean, value=-1)
        gradient_g = torch.addcmul(rest.view(shape), x, x_in_g.view(shape)).add_(wrPu)
        x_in_x = torch.addcmul(of_P * B, wr * r, C) * r
        rest = torch.addcmul(x_in_x * mean, of_P, g_sum, value=-1 / m)
        gradient_x = torch.addcmul(rest.view(shape), x, x_in_x.view(shape), value=-1)
        gradient_x.addcmul_(g, of_P.view(shape)).addcmul_(wrPu, (B * r).view(shape), value=-1)
        return gradient_g.to(g.dtype), gradient_x.to(x.dtype), C * (m * r), None, None


def _gradients(g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    "w r Pg, Σ g x̂ and Σ g"
    return torch.ops.aten.native_batch_norm_backward(g, x, weight, None, None, mean, r, True, 0., [True] * 3)
