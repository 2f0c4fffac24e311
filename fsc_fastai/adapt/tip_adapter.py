"Tip-Adapter without training: the support is a cache of keys and values (Zhang et al. 2022)"
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import register_adaptation
from .features import FeatureMethod, Fitted, unit

__all__ = ['TipAdapter', 'Cache']


@dataclass(kw_only=True)
class Cache(Fitted):
    "Scores exp(−β(1 − q·keys))·values, plus the similarity to text features if there are any"
    keys: Tensor # Unit features of the support `(…, n_support, d)`
    values: Tensor # One-hot labels `(…, n_support, n_way)`
    alpha: float # Weight of the cache
    beta: float # Sharpness of the cache
    text: Tensor | None # Unit columns, one per class `(d, n_way)`

    def cached(self, x: Tensor) -> Tensor:
        "Scores of the cache `(…, n, n_way)`, summed over the shots (Zhang et al. 2022, equation (4))"
        return (-self.beta * (1 - unit(x) @ self.keys.mT)).exp() @ self.values

    def score(self, x: Tensor) -> Tensor:
        "Scores `(…, n, n_way)` of cache and texts, equation (5)"
        cached = self.alpha * self.cached(x)
        return cached if self.text is None else 100 * unit(x) @ self.text.to(x) + cached


@register_adaptation('tip_adapter')
@dataclass(kw_only=True)
class TipAdapter(FeatureMethod):
    """Scores from a cache of the support (Zhang et al. 2022, section 3.1).

    They are sums over the shots, so a class with more shots gets higher scores. With text features of the classes the cache is
    added to their similarity, as published; without them it is used alone.
    """
    has_graph = True
    alpha: float = 1.17 # Weight of the cache; 1.17 is where the published search starts
    beta: float = 1. # Sharpness of the cache
    text: Tensor | None = None # Text features of the classes as unit columns `(d, n_way)`

    def adapt(self, support: Tensor, member: Tensor, query: Tensor | None) -> Fitted:
        "Store unit features as keys; the published keys are means over augmented views"
        return Cache(keys=unit(support), values=member, alpha=self.alpha, beta=self.beta, text=self.text)


