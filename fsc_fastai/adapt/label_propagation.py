"Label propagation: confident predictions spread over a graph of neighbouring queries (Liu et al. 2020, FTEM)"
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
    k: int = 10, # Neighbours, including the query itself
) -> Tensor:
    """Edge weights W `(…, n_query, n_query)` of the graph of the queries, in double precision.

    exp(−d²/2σ²) between two queries if one is among the k neighbours of the other, else 0; σ² is the mean squared distance of
    neighbours. Raises `ValueError` for k > n_query.
    """
    n, x = query.shape[-2], query.double()
    if k > n: raise ValueError(f'label propagation with k={k} neighbours needs as many queries, found {n}: use a smaller k')
    squared = torch.cdist(x, x, compute_mode='donot_use_mm_for_euclid_dist').square()
    near, neighbours = squared.topk(k, largest=False)
    edge = torch.zeros_like(squared).scatter_(-1, neighbours, 1.)
    return torch.maximum(edge, edge.mT) * (-squared / (2 * near.mean((-2, -1), keepdim=True).clamp(min=1e-300))).exp()


def normalised(W: Tensor) -> Tensor:
    "D^-½ W D^-½, where D has the row sums of W"
    root = W.sum(-1).rsqrt()
    return root[..., :, None] * W * root[..., None, :]


def confident(
    probabilities: Tensor, # `(…, n_query, n_way)`
    delta: float = 0.2, # Share of the queries that each class keeps
) -> Tensor:
    "Keep the highest probabilities of each class and set the others to 0; a query may keep several or none"
    n = probabilities.shape[-2]
    return probabilities.scatter(-2, probabilities.argsort(-2)[..., :int(n * (1 - delta)), :], 0.)


def propagate(
    query: Tensor, # Features of the queries `(…, n_query, d)`
    probabilities: Tensor, # First predictions `(…, n_query, n_way)`
    k: int = 10, # Neighbours, see `affinities`
    delta: float = 0.2, # Share to keep, see `confident`
    alpha: float = 0.5, # Weight of the neighbours, from 0 to 1
) -> Tensor:
    """Refined scores `(…, n_query, n_way)`, which are no probabilities: (I − αL)⁻¹ · kept, with L = D^-½ W D^-½.

    The support takes no part. Computed in double precision. Raises `ValueError` for k > n_query.
    """
    L, kept = normalised(affinities(query, k)), confident(probabilities.double(), delta)
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    return torch.linalg.solve(eye - alpha * L, kept).to(query.dtype)


@register_adaptation('label_propagation')
@dataclass(kw_only=True)
class LabelPropagation(FeatureMethod):
    "Spread the predictions of another method among neighbouring queries (Liu et al. 2020)"
    transductive = True
    on: FeatureMethod = field(default_factory=LogisticHead) # The method whose predictions are refined
    k: int = 10 # Neighbours, including the query itself
    delta: float = 0.2 # Share of the queries that each class keeps
    alpha: float = 0.5 # Weight of the neighbours

    def adapt(self, support: Tensor, member: Tensor, query: Tensor) -> Fitted:
        "Predict with `on`, then propagate"
        first = self.on.fit(support, member, query)(query).softmax(-1)
        return Answers(scores=propagate(query, first, self.k, self.delta, self.alpha), details={'probabilities': first})
