"""Autograd functions whose backward pass carries relevance.

There are two forms. In the R-form the backward pass carries relevance. In the g-form it carries g, where R = x·g, so sums, pools,
concatenations and padding are plain gradients, and only layers need a rule. The functions never return views, so a write to
a part of their result finds it as the base of that part.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function

from .rules import Layer, Rule, divide

__all__ = ['to_relevance', 'from_relevance', 'scaled', 'layer_rule']


class _ToRelevance(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x
        return x.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor: return ctx.x * g


class _FromRelevance(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, eps: float) -> Tensor:
        ctx.y, ctx.eps = y, eps
        return y.detach()

    @staticmethod
    def backward(ctx: Any, R: Tensor) -> tuple: return divide(R, ctx.y, ctx.eps), None


class _Scaled(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, k: Tensor | float | None) -> Tensor:
        ctx.k = k
        return y.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple: return (g if ctx.k is None else g * ctx.k), None, None


class _LayerRule(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, layer: Layer, rule: Callable, g_in: bool, g_out: bool, ledger: Any) -> Tensor:
        ctx.layer, ctx.rule, ctx.g_in, ctx.y, ctx.ledger = layer, rule, g_in, y if g_out else None, ledger
        return y.detach()

    @staticmethod
    def backward(ctx: Any, flow: Tensor) -> tuple:
        layer, rule, x = ctx.layer, ctx.rule(), ctx.layer.x
        R = flow if ctx.y is None else flow * ctx.y
        if ctx.ledger is not None: layer.dead = []
        c = rule(layer, x, R)
        of_input = getattr(rule, 'of_input', False) # a plain function is a rule, too
        if ctx.ledger is not None: ctx.ledger.append((layer, rule, R, c if of_input else x * c))
        if of_input == ctx.g_in: c = divide(c, x) if ctx.g_in else x * c
        return (c, *[None] * 6)


def to_relevance(x: Tensor) -> Tensor:
    "x; backward turns g into R = x·g"
    return _ToRelevance.apply(x)


def from_relevance(
    y: Tensor, # The outputs that share R
    eps: float = 0., # Stabiliser ε
) -> Tensor:
    "y; backward turns R into g = R / (y + ε·sign(y))"
    return _FromRelevance.apply(y, eps)


def scaled(
    x: Tensor, # The tensor that the backward pass goes to
    y: Tensor, # The value, of the same shape
    k: Tensor | float | None = None, # Factor of the backward pass; None: unchanged
) -> Tensor:
    "y; backward passes k·g on to x"
    return _Scaled.apply(x, y.detach(), k)


def layer_rule(
    x: Tensor, # Where the relevance of the layer's input goes
    y: Tensor, # Output, of a batch norm behind the layer if the two count as one
    layer: Layer, # The run
    rule: Callable[[], Rule], # Called in the backward pass, after all layers have run
    g_in: bool, # Send g to x instead of relevance
    g_out: bool, # Receive g from y instead of relevance
    ledger: list | None = None, # A list that collects (layer, rule, relevance of the output, relevance of the input)
) -> Tensor:
    "y; backward applies the rule of the layer"
    return _LayerRule.apply(x, y.detach(), layer, rule, g_in, g_out, ledger)
