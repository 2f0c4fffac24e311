"A gradient through a step of gradient descent, and a loss whose gradient is known already"
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...tensors import full_precision

__all__ = ['Gradients', 'gradient', 'second_order_step', 'sums', 'with_gradient']

Gradients = list[Tensor | None]
"One gradient for each of several tensors; None for a tensor that the loss does not depend on"


def gradient(
    loss: Tensor | Sequence[Tensor], # What to differentiate, a scalar or several tensors
    wrt: Sequence[Tensor], # The tensors to differentiate by
    scale: Tensor | None = None, # Loss scale, which keeps gradients in the range of half precision; the result is divided by it
    weights: Sequence[Tensor] | None = None, # Weights of the entries of `loss`, if it is not a scalar
    **kwargs: Any, # For `torch.autograd.grad`
) -> Gradients:
    "The gradient of `loss`, with None where `loss` does not depend on a tensor"
    if scale is not None:
        if weights is None: loss = loss * scale  # type: ignore[operator]
        else: weights = [w * scale for w in weights]
    # autocast is for forward passes: each derivative keeps the precision of what it differentiates
    with full_precision(wrt[0]): found = torch.autograd.grad(loss, wrt, weights, allow_unused=True, **kwargs)
    return list(found) if scale is None else _each(lambda known: torch._foreach_div(known, scale), list(found))


def second_order_step(
    loss: Tensor, # Loss L of the pseudo-seen episode, a function of `weights` and `outer`
    weights: Sequence[Tensor], # The model's weights w
    lrs: Sequence[float], # Learning rate of each weight
    outer: Sequence[Tensor], # Parameters of the transformations: γ, β
    next_losses: Callable[[list[Tensor]], Iterable[Tensor]], # Maps the fast weights to losses; `outer` minimises their sum L'
    scale: Tensor | None = None, # Loss scale of mixed precision
) -> tuple[Gradients, list[Tensor]]:
    """The gradient g = ∂L/∂w, and the gradient of L' by `outer` at the fast weights w − lr·g (Tseng et al. 2020, Algorithm 1).

    ∂L'(w − lr·g)/∂γ = −lr·(∂L'/∂w)ᵀ ∂g/∂γ. The losses are differentiated one by one, with the fast weights as leaves, so that
    only one of their graphs is alive at a time. Frees the graph of `loss`.
    """
    g = gradient(loss, weights, scale, create_graph=True)
    downhill = _gradient_after_step(weights, lrs, g, next_losses, scale)
    paths = [(d, u) for d, u in zip(g, downhill, strict=True) if d is not None and u is not None and d.requires_grad]
    through = gradient([d for d, _ in paths], outer, scale, [u for _, u in paths]) if paths else [None] * len(outer)
    return ([None if d is None else d.detach() for d in g],
            [torch.zeros_like(p) if d is None else d for p, d in zip(outer, through, strict=True)])


def _gradient_after_step(
    weights: Sequence[Tensor], lrs: Sequence[float], g: Gradients,
    next_losses: Callable[[list[Tensor]], Iterable[Tensor]], scale: Tensor | None,
) -> Gradients:
    "−lr·∂L'/∂w of the sum of the losses L' at the fast weights; in a function of its own, so that those are freed at its end"
    downhill = [-lr for lr in lrs]
    with torch.no_grad():
        moved = sums(list(weights), _each(torch._foreach_mul, g, downhill))
    fast = [w.requires_grad_() for w in moved if w is not None]
    total: Gradients = [None] * len(fast)
    for next_loss in next_losses(fast): total = sums(total, gradient(next_loss, fast, scale))
    return _each(torch._foreach_mul, total, downhill)


def sums(
    a: Gradients, # One gradient for each of several tensors
    b: Gradients, # Other gradients, for the same tensors
) -> Gradients:
    "The sum of both gradients of each tensor; None counts as zero"
    both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    found = iter(torch._foreach_add(*map(list, zip(*both, strict=True))) if both else ())
    return [y if x is None else x if y is None else next(found) for x, y in zip(a, b, strict=True)]


def _each(
    f: Callable[..., Iterable[Tensor]], # Takes all tensors in one call, for which a GPU needs few kernels
    gradients: Gradients, # Some of them None
    *others: Sequence, # Further arguments, one for each
) -> Gradients:
    "Apply `f` to the gradients that are not None, and put the results in their places"
    known = [row for row in zip(gradients, *others, strict=True) if row[0] is not None]
    found = iter(f(*map(list, zip(*known, strict=True))) if known else ())
    return [None if g is None else next(found) for g in gradients]


def with_gradient(
    value: Tensor, # Value of the loss
    wrt: Sequence[Tensor], # Tensors that the loss depends on
    gradients: Gradients, # Gradient of the loss by each of them
) -> Tensor:
    "A loss of this value; differentiating it gives the tensors these gradients"
    known = [(w, g) for w, g in zip(wrt, gradients, strict=True) if g is not None]
    return _KnownGradient.apply(value, [g for _, g in known], *(w for w, _ in known))


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *wrt: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        gradients, ctx.gradients = ctx.gradients, None  # fastai keeps the loss until the next step
        return None, None, *(torch._foreach_mul(gradients, upstream) if gradients else ())
