"Transductive inference: confident queries join the support set (Hou et al. 2019, section 3.4; Sun et al. 2020, section IV-B)"
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..methods.base import FewShotModel, one_hot
from ..methods.head import Head
from .base import Adaptation, register_adaptation

__all__ = ['CANDIDATES', 'SelfTraining', 'SelfTrainedNet', 'enlarged_support', 'transductive_scores',
           'scale_candidates']

CANDIDATES = (35, 70)
_PUBLISHED_QUERIES = 75  # the candidates were chosen for episodes of 5 × 15 queries


def scale_candidates(
    n_query: int, # Queries of the episode, all classes together
    candidates: Sequence[int] = CANDIDATES, # Queries that join in each round, for 75 or more queries
) -> tuple[int, ...]:
    """`candidates` for an episode of `n_query` queries, reduced in proportion if there are fewer than the published 75.

    >>> scale_candidates(15)
    (7, 14)
    """
    share = min(1., n_query / _PUBLISHED_QUERIES)
    return tuple(max(1, int(n*share)) for n in candidates)


def enlarged_support(
    head: Head, # `model.head()` of any method but a GNN
    f_support: Tensor, # Feature maps `(n_support, C, H, W)`, or their `head.compact` form
    support_y: Tensor, # Labels `(n_support,)`
    f_query: Tensor, # Feature maps `(n_query, C, H, W)`
    candidates: Sequence[int] = CANDIDATES, # Queries that join in each round
) -> tuple[Tensor, Tensor]:
    "The support and its one-hot labels after the most confident queries of each round joined it with their predicted class"
    member = one_hot(support_y, f_query.dtype)
    if member.shape[1] < 2: raise ValueError('self-training: a support of one class leaves nothing to tell apart')
    for n in scale_candidates(f_query.shape[0], candidates):
        confidence, label = head.fit(f_support, member)(f_query).max(1)
        chosen = confidence.argsort(descending=True)[:n]
        f_support = torch.cat([f_support, f_query[chosen]])
        member = torch.cat([member, torch.eye(member.shape[1], device=member.device, dtype=member.dtype)[label[chosen]]])
    return f_support, member


def transductive_scores(
    head: Head, f_support: Tensor, support_y: Tensor, f_query: Tensor, candidates: Sequence[int] = CANDIDATES,
) -> Tensor:
    "Scores `(n_query, n_way)` with the `enlarged_support`. Raises `TypeError` for a GNN, whose graphs have a fixed support"
    if not head.model.transductive:
        raise TypeError(f'transductive inference changes the size of the support set, which a {type(head.model).__name__} learns '
                        'with: evaluate it with transductive=False')
    return head.fit(*enlarged_support(head, f_support, support_y, f_query, candidates))(f_query)


class SelfTrainedNet(FewShotModel):
    "A model whose most confident queries join the support before all queries are classified"
    def __init__(self,
        model: FewShotModel, # The model that scores the queries
        candidates: Sequence[int] = CANDIDATES, # Queries that join in each round
    ):
        super().__init__(model.encoder, model.n_way, model.n_classes)
        self.base, self.candidates = model, candidates

    def encode(self, x: Tensor) -> Tensor:
        "Encode images as the model does"
        return self.base.encode(x)

    def process(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Any:
        "Process with the enlarged support"
        return self.base.process(*enlarged_support(self.base.head(), f_support, support_y, f_query, self.candidates), f_query)

    def classify(self, f_p: Any) -> Tensor:
        "Scores `(n_query, n_way)` of the model"
        return self.base.classify(f_p)

    def forward_head(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Tensor:
        "Scores `(n_query, n_way)` with the enlarged support"
        return transductive_scores(self.base.head(), f_support, support_y, f_query, self.candidates)


@register_adaptation('self_training')
@dataclass(kw_only=True)
class SelfTraining(Adaptation):
    """Confident queries join the support with their predicted class, in two rounds (Hou et al. 2019, section 3.4).

    This is the transductive evaluation of Sun et al. 2020, section IV-B. It works for every method except a GNN, whose graphs
    have a fixed support.
    """
    on_images = False
    transductive = True
    candidates: Sequence[int] = CANDIDATES # Queries that join in each round, for 75 or more queries

    def __call__(self,
        model: FewShotModel, support_x: Tensor | None = None, support_y: Tensor | None = None, query_x: Tensor | None = None,
    ) -> SelfTrainedNet:
        "A `SelfTrainedNet` around the model; the images may be left out"
        return SelfTrainedNet(model, self.candidates).train(model.training)
