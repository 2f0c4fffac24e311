"Processed features that pair every query with every class, or with every support sample"
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import Processed

__all__ = ['Pairs', 'LabelledPairs', 'pair_parts']


@dataclass
class Pairs(Processed):
    """Pairs of every query with every class prototype, stored as two small tensors.

    `features` concatenates them to dense pairs `(n_query, n_way, 2C, ...)`, the prototype first; plain training never needs
    that. `w * pairs` is a weighted dense tensor. `classify` takes either form.
    """
    support: Tensor # Class prototypes `(n_way, C, ...)`
    query: Tensor # Queries `(n_query, C, ...)`
    encoded: bool = False # These are maps of the model's encoder, whose sign may be known

    @property
    def features(self) -> Tensor: # type: ignore[override]
        "Dense pairs `(n_query, n_way, 2C, ...)`"
        return torch.cat(torch.broadcast_tensors(*pair_parts(self)), 2)

    @property
    def of_class(self) -> Tensor:
        "The identity matrix `(n_way, n_way)`: each class has one pair with every query"
        return torch.eye(len(self.support), device=self.support.device)

    def with_features(self, features: Tensor) -> Tensor:
        "Return `features`: dense pairs need nothing else"
        return features


@dataclass
class LabelledPairs(Processed):
    "Pairs of every query with every support sample, and the labels of the samples"
    support: Tensor # Broadcasts to `(n_query, n_support, C)`
    query: Tensor # Broadcasts to `(n_query, n_support, C)`
    labels: Tensor # One-hot `(n_support, n_way)`

    @property
    def features(self) -> Tensor: # type: ignore[override]
        "Dense pairs `(n_query, n_support, 2C)`, the support sample first"
        return torch.cat(torch.broadcast_tensors(self.support, self.query), 2)

    @property
    def of_class(self) -> Tensor:
        "The class of each sample `(n_way, n_support)`, one-hot"
        return self.labels.T

    def with_features(self, features: Tensor) -> LabelledPairs:
        "A copy with other dense pairs and the same labels"
        support, query = features.chunk(2, 2)
        return replace(self, support=support, query=query)


def pair_parts(pairs: Pairs | Tensor) -> tuple[Tensor, Tensor]:
    "Prototypes and queries that broadcast to `(n_query, n_way, C, ...)`, from pairs in either form"
    if isinstance(pairs, Pairs): return pairs.support[None], pairs.query[:, None]
    support, query = pairs.chunk(2, 2)
    return support, query
