"Processed features that pair every query with every class, or with every support sample"
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import Processed

__all__ = ['Pairs', 'LabelledPairs', 'pair_parts']


@dataclass
class Pairs(Processed):
    """Every query with every class prototype, kept apart.

    `features` materialises the pairs `(n_query, n_way, 2C, ...)`, the prototype first, which a plain step never needs.
    `w * pairs` is such a dense tensor, weighted; `classify` takes both forms.
    """
    support: Tensor # Class prototypes `(n_way, C, ...)`
    query: Tensor # Queries `(n_query, C, ...)`
    encoded: bool = False # By `process` from maps of the model's encoder, whose sign it may know?

    @property
    def features(self) -> Tensor: # type: ignore[override]
        "The pairs as one tensor `(n_query, n_way, 2C, ...)`"
        return torch.cat(torch.broadcast_tensors(*pair_parts(self)), 2)

    @property
    def of_class(self) -> Tensor:
        "Each class has one pair with every query"
        return torch.eye(len(self.support), device=self.support.device)

    def with_features(self, features: Tensor) -> Tensor:
        "Dense pairs need nothing besides"
        return features


@dataclass
class LabelledPairs(Processed):
    "Every query with every support sample, and the labels of the samples"
    support: Tensor # Broadcasts to `(n_query, n_support, C)`
    query: Tensor # Broadcasts to `(n_query, n_support, C)`
    labels: Tensor # One-hot `(n_support, n_way)`

    @property
    def features(self) -> Tensor: # type: ignore[override]
        "The pairs as one tensor `(n_query, n_support, 2C)`, the sample first"
        return torch.cat(torch.broadcast_tensors(self.support, self.query), 2)

    @property
    def of_class(self) -> Tensor:
        "The pairs with the samples of each class"
        return self.labels.T

    def with_features(self, features: Tensor) -> LabelledPairs:
        "The same labels for other pairs"
        support, query = features.chunk(2, 2)
        return replace(self, support=support, query=query)


def pair_parts(pairs: Pairs | Tensor) -> tuple[Tensor, Tensor]:
    "Prototypes and queries that broadcast to `(n_query, n_way, C, ...)`, of pairs in either form"
    if isinstance(pairs, Pairs): return pairs.support[None], pairs.query[:, None]
    support, query = pairs.chunk(2, 2)
    return support, query
