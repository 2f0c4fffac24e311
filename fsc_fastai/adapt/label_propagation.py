"Label propagation among the queries: confident answers spread over a graph of neighbours (Liu et al. 2020, FTEM)"
from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .base import register_adaptation
from .features import Answers, FeatureMethod, Fitted
from .linear import LogisticHead

__all__ = ['LabelPropagation', 'affinities', 'confident', 'normalised', 'propagate']


def affinities(
    query: Tensor, # Features of the queries `(…, n_query, d)`
    k: int = 10, # Neighbours, the query itself among them
) -> Tensor:
    """Weights W of the graph of the queries `(…, n_query, n_query)`, in double precision. `ValueError` for k > n_query.

    exp(−d²/2σ²) between a query and its neighbours in either direction, σ² the mean of their squared distances.
    """
    n, x = query.shape[-2], query.double()
    if k > n: raise ValueError(f'label propagation with k={k} neighbours needs as many queries, found {n}: use a smaller k')
    squared = torch.cdist(x, x, compute_mode='donot_use_mm_for_euclid_dist').square()
    near, neighbours = squared.topk(k, largest=False)
    edge = torch.zeros_like(squared).scatter_(-1, neighbours, 1.)
    return torch.maximum(edge, edge.mT) * (-squared / (2 * near.mean((-2, -1), keepdim=True).clamp(min=1e-300))).exp()


def normalised(W: Tensor) -> Tensor:
    "D^-½ W D^-½, D the sums of the rows"
    root = W.sum(-1).rsqrt()
    return root[..., :, None] * W * root[..., None, :]


def confident(
    probabilities: Tensor, # `(…, n_query, n_way)`
    delta: float = 0.2, # Share of the queries of each class that is kept
) -> Tensor:
    "The probabilities with 0 for all but the highest of each class; a query may keep several, or none"
    n = probabilities.shape[-2]
    return probabilities.scatter(-2, probabilities.argsort(-2)[..., :int(n * (1 - delta)), :], 0.)


def propagate(
    query: Tensor, # Features of the queries `(…, n_query, d)`
    probabilities: Tensor, # First answers `(…, n_query, n_way)`
    k: int = 10, # As in `affinities`
    delta: float = 0.2, # As in `confident`
    alpha: float = 0.5, # How far answers spread
) -> Tensor:
    """Refined scores `(…, n_query, n_way)`, no probabilities: (I − αL)⁻¹ · kept, L = D^-½ W D^-½.

    The support takes no part. In double precision, which the sizes of the published counts need. `ValueError` for k > n_query.
    """
    L, kept = normalised(affinities(query, k)), confident(probabilities.double(), delta)
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    return torch.linalg.solve(eye - alpha * L, kept).to(query.dtype)


@register_adaptation('label_propagation')
@dataclass(kw_only=True)
class LabelPropagation(FeatureMethod):
    "The answers of another method, spread among neighbouring queries"
    transductive = True
    on: FeatureMethod = field(default_factory=LogisticHead) # Whose answers are refined
    k: int = 10 # As in `propagate`
    delta: float = 0.2
    alpha: float = 0.5

    def adapt(self, support: Tensor, member: Tensor, query: Tensor | None) -> Fitted:
        "Answer by `on`, then propagate"
        assert query is not None
        first = self.on.fit(support, member, query)(query).softmax(-1)
        return Answers(scores=propagate(query, first, self.k, self.delta, self.alpha), details={'probabilities': first})
