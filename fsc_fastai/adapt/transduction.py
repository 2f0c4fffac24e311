"Transductive inference: confident queries join the support set (Hou et al. 2019, section 3.4; Sun et al. 2020, section IV-B)"
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..methods.base import FewShotModel, one_hot
from ..methods.graph import GNNNet

__all__ = ['CANDIDATES', 'transductive_scores', 'scale_candidates']

CANDIDATES = (35, 70)
_PUBLISHED_QUERIES = 75  # the candidates were chosen for episodes of 5 × 15 queries


def scale_candidates(
    n_query: int, # Queries of the episode, all classes together
    candidates: Sequence[int] = CANDIDATES, # Queries that join in each round, for 75 or more queries
) -> tuple[int, ...]:
    """`candidates` for an episode of `n_query` queries: in proportion where there are fewer than the published 75.

    >>> scale_candidates(15)
    (7, 14)
    """
    share = min(1., n_query / _PUBLISHED_QUERIES)
    return tuple(max(1, int(n*share)) for n in candidates)


def transductive_scores(
    model: FewShotModel, # Any method but a GNN
    f_support: Tensor, # Feature maps `(n_support, C, H, W)`
    support_y: Tensor, # Labels `(n_support,)`
    f_query: Tensor, # Feature maps `(n_query, C, H, W)`
    candidates: Sequence[int] = CANDIDATES, # Queries that join in each round
) -> Tensor:
    """Scores `(n_query, n_way)` after each round's most confident queries have joined the support under their predicted label.

    Rounds accumulate; one last pass scores all queries. Raises `TypeError` for a GNN, whose graphs have a fixed support.
    """
    if isinstance(model, GNNNet):
        raise TypeError('transductive inference changes the size of the support set, which a GNNNet learns with: '
                        'evaluate it with transductive=False')
    member = one_hot(support_y, f_query.dtype)
    scores = model.forward_head(f_support, member, f_query)
    for n in scale_candidates(f_query.shape[0], candidates):
        confidence, label = scores.max(1)
        chosen = confidence.argsort(descending=True)[:n]
        f_support = torch.cat([f_support, f_query[chosen]])
        member = torch.cat([member, torch.eye(member.shape[1], device=member.device, dtype=member.dtype)[label[chosen]]])
        scores = model.forward_head(f_support, member, f_query)
    return scores
