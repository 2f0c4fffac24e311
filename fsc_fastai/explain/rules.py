"""Relevance rules of layers, each written as its formula.

A rule is called as `rule(layer, x, R)`: the layer, its input and the relevance of its output. It returns c with
R(x_i) = x_i c_i, so that the engine may multiply by x now or later; a rule with `of_input = True` returns R(x_i) itself.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ['Layer', 'Rule', 'divide', 'Epsilon', 'AlphaBeta', 'ZPlus', 'Gamma', 'ZBox', 'Flat', 'WSquare']


def divide(
    R: Tensor, # Relevance of the outputs
    z: Tensor, # The outputs, by which it is divided
    eps: float = 0., # ε of equation (4)
) -> Tensor:
    """R / (z + ε·sign(z)), and 0 where z is 0.

    >>> divide(torch.tensor([1., 1., 1.]), torch.tensor([2., -4., 0.]))
    tensor([ 0.5000, -0.2500,  0.0000])
    """
    return (R / (torch.add(z, z.sign(), alpha=eps) if eps else z)).masked_fill(z == 0, 0)


@dataclass
class Layer:
    """A linear or convolutional layer in one forward pass, as rules need it.

    If a batch norm after the layer is folded into it, `weight`, `z` and `bias` are those of the folded layer.
    """
    run: Callable[[Tensor, Tensor], Tensor] # (x, weight) to the output without bias
    transpose: Callable[[Tensor, Tensor, Tensor], Tensor] # (s, weight, x) to Σ_j w_ij s_j, in the shape of x
    x: Tensor # Input
    z: Tensor # Output without bias
    weight: Tensor # Weight of the layer, or the folded weight
    bias: Tensor | None = None # Bias in the denominators; None: no bias there, as in the published rules
    name: str = '' # Name in the model, or of the function
    kind: type | None = None # The module's class
    position: int = 0 # 0 for the first layer that ran
    signed: bool = True # The input may be negative; after a ReLU it is not, which halves the work of most rules
    dead: list[Tensor] | None = field(default=None, repr=False) # Relevance at denominators of 0, if recorded

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        "The output for another input or weight, without bias"
        return self.run(x, weight)

    def T(self, s: Tensor, weight: Tensor) -> Tensor:
        "The transposed layer, from the shape of the output to that of the input: c_i = Σ_j w_ij s_j"
        return self.transpose(s, weight, self.x)

    def share(self,
        R: Tensor, # Relevance of the output
        z: Tensor, # Denominators, in the same shape
        eps: float = 0., # Stabiliser ε
        bias: Tensor | None = None, # Bias in the denominators
    ) -> Tensor:
        "s_j = R_j / z_j, stabilised by ε"
        if bias is not None: z = z + bias
        if self.dead is not None: self.dead.append(torch.where(z == 0, R, 0).sum())
        return divide(R, z, eps)


Rule = Callable[[Layer, Tensor, Tensor], Tensor]


def _at_least_0(name: str, value: float) -> None:
    if not 0 <= value < math.inf: raise ValueError(f'{name}={value}: wanted a number of at least 0')


def _pos(x: Tensor | None) -> Tensor | None: return None if x is None else x.clamp(min=0)
def _neg(x: Tensor | None) -> Tensor | None: return None if x is None else x.clamp(max=0)


def _by_sign(layer: Layer, x: Tensor, R: Tensor, w_pos, w_neg, eps: float = 0., bias: Tensor | None = None) -> Tensor:
    "c for a rule whose weight is `w_pos` for positive inputs and `w_neg` for negative ones"
    if not layer.signed: return layer.T(layer.share(R, layer(x, w_pos), eps, bias), w_pos)
    x_pos, x_neg = x.clamp(min=0), x.clamp(max=0)
    s = layer.share(R, layer(x_pos, w_pos) + layer(x_neg, w_neg), eps, bias)
    return torch.where(x > 0, layer.T(s, w_pos), layer.T(s, w_neg))


@dataclass(frozen=True)
class Epsilon:
    "The ε-rule, Sun et al. 2020, equation (4): R(x_i) = x_i Σ_j w_ij R_j / (z_j + ε·sign(z_j))"
    eps: float = 1e-3 # ε

    def __post_init__(self): _at_least_0('eps', self.eps)

    def __call__(self, layer: Layer, x: Tensor, R: Tensor) -> Tensor:
        return layer.T(layer.share(R, layer.z, self.eps, layer.bias), layer.weight)


@dataclass(frozen=True)
class AlphaBeta:
    """The α-β-rule, Sun et al. 2020, equation (5): α shares of the positive and β = α − 1 of the negative contributions.

    Positive contributions are x⁺w⁺ and x⁻w⁻. With α = 1 only they are computed; an input without negative values
    then costs one pass with w⁺ and one transposed pass. Raises `ValueError` unless α ≥ 1 and β = α − 1.
    """
    alpha: float = 1. # α
    beta: float | None = None # β; None: α − 1

    def __post_init__(self):
        if not (self.alpha >= 1 and math.isclose(self.alpha - self.share_of_negative, 1, abs_tol=1e-6)):
            raise ValueError(f'α={self.alpha}, β={self.share_of_negative}: wanted α ≥ 1 and β = α − 1, else relevance is not '
                             'conserved')

    @property
    def share_of_negative(self) -> float:
        "β"
        return self.alpha - 1 if self.beta is None else self.beta

    def __call__(self, layer: Layer, x: Tensor, R: Tensor) -> Tensor:
        beta = self.share_of_negative
        pos, neg = _pos(layer.weight), _neg(layer.weight)
        c = _by_sign(layer, x, R, pos, neg, bias=_pos(layer.bias))
        if not beta: return c
        return self.alpha * c - beta * _by_sign(layer, x, R, neg, pos, bias=_neg(layer.bias))


class ZPlus(AlphaBeta):
    "The z⁺-rule (Montavon et al. 2017): only positive contributions, the α-β-rule with α = 1"
    def __init__(self): super().__init__(1., 0.)


@dataclass(frozen=True)
class Gamma:
    "The γ-rule (Montavon et al. 2019): positive contributions count (1 + γ)-fold; γ = 0 is the ε-rule, γ → ∞ is z⁺"
    gamma: float = .25 # γ
    eps: float = 1e-6 # Stabiliser ε

    def __post_init__(self):
        _at_least_0('gamma', self.gamma)
        _at_least_0('eps', self.eps)

    def __call__(self, layer: Layer, x: Tensor, R: Tensor) -> Tensor:
        w, bias = layer.weight, layer.bias
        favoured = None if bias is None else bias + self.gamma * bias.clamp(min=0)
        return _by_sign(layer, x, R, w + self.gamma * w.clamp(min=0), w + self.gamma * w.clamp(max=0), self.eps, favoured)


@dataclass(frozen=True)
class ZBox:
    """The z^B-rule (Montavon et al. 2017) for pixels between `low` and `high`, numbers or tensors that broadcast:
    R(x_i) ∝ x_i w_ij − l_i w⁺_ij − h_i w⁻_ij"""
    low: float | Tensor # The smallest value of a pixel
    high: float | Tensor # The largest
    eps: float = 1e-6 # Stabiliser ε
    of_input: ClassVar[bool] = True

    def __post_init__(self):
        _at_least_0('eps', self.eps)
        if (torch.as_tensor(self.low) > torch.as_tensor(self.high)).any():
            raise ValueError(f'ZBox(low={self.low}, high={self.high}): the smallest value of a pixel comes first')

    def __call__(self, layer: Layer, x: Tensor, R: Tensor) -> Tensor:
        w, pos, neg = layer.weight, layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        low, high = (torch.as_tensor(b, dtype=x.dtype, device=x.device).expand_as(x) for b in (self.low, self.high))
        s = layer.share(R, layer(x, w) - layer(low, pos) - layer(high, neg), self.eps)
        return x * layer.T(s, w) - low * layer.T(s, pos) - high * layer.T(s, neg)


@dataclass(frozen=True)
class Flat:
    "The flat rule (Lapuschkin et al. 2019): the relevance of an output is shared equally among its inputs"
    of_input: ClassVar[bool] = True

    def __call__(self, layer: Layer, x: Tensor, R: Tensor) -> Tensor:
        return _by_weight(layer, x, R, torch.ones_like(layer.weight))


@dataclass(frozen=True)
class WSquare:
    "The w²-rule (Montavon et al. 2017): the relevance of an output is shared among its inputs in proportion to w²"
    of_input: ClassVar[bool] = True

    def __call__(self, layer: Layer, x: Tensor, R: Tensor) -> Tensor:
        return _by_weight(layer, x, R, layer.weight**2)


def _by_weight(layer: Layer, x: Tensor, R: Tensor, w: Tensor) -> Tensor:
    "Relevance in proportion to the weights `w` alone, whatever the input"
    return layer.T(layer.share(R, layer(torch.ones_like(x), w)), w)
