"Tip-Adapter without training: the support as a cache of keys and values (Zhang et al. 2022)"
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import register_adaptation
from .features import FeatureMethod, Fitted, unit

__all__ = ['TipAdapter', 'Cache']


@dataclass(kw_only=True)
class Cache(Fitted):
    "exp(−β(1 − q·keys))·values, beside the similarity to texts where there are any"
    keys: Tensor # Unit features of the support `(…, n_support, d)`
    values: Tensor # One-hot labels `(…, n_support, n_way)`
    alpha: float # Weight of the cache
    beta: float # Its sharpness
    text: Tensor | None # Unit columns, one per class `(d, n_way)`

    def cached(self, x: Tensor) -> Tensor:
        "What the cache says `(…, n, n_way)`, summed over the shots (Zhang et al. 2022, equation (4))"
        return (-self.beta * (1 - unit(x) @ self.keys.mT)).exp() @ self.values

    def score(self, x: Tensor) -> Tensor:
        "Equation (5)"
        cached = self.alpha * self.cached(x)
        return cached if self.text is None else 100 * unit(x) @ self.text.to(x) + cached


@register_adaptation('tip_adapter')
@dataclass(kw_only=True)
class TipAdapter(FeatureMethod):
    """A cache of the support, summed over shots: a class with more of them gets more (Zhang et al. 2022, section 3.1).

    With text features of the classes it adds to their similarity, as published; without, the cache answers alone.
    """
    has_graph = True
    alpha: float = 1.17 # Weight of the cache; 1.17 is where the published search starts
    beta: float = 1. # Sharpness
    text: Tensor | None = None # Text features of the classes as unit columns `(d, n_way)`

    def adapt(self, support: Tensor, member: Tensor, query: Tensor | None) -> Fitted:
        "Keys are unit features; give means over augmented views to have the published ones"
        return Cache(keys=unit(support), values=member, alpha=self.alpha, beta=self.beta, text=self.text)


