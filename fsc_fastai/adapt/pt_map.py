"PT-MAP: power transform of the features, optimal transport of the queries to the classes (Hu et al. 2021)"
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import register_adaptation
from .features import Answers, FeatureMethod, Fitted, Treatment, means, unit
from .tuning import HalfSquareTo

__all__ = ['PTMAP', 'transport_plan']


def transport_plan(
    cost: Tensor, # `(…, n_query, n_way)`
    lam: float, # Sharpness of the plan
    per_class: float, # Queries that each class gets
    eps: float = 1e-10, # Added to row sums
    tol: float = 1e-6, # Stop once no row sum changes by more
    rounds: int = 1000, # Most iterations
) -> Tensor:
    "Sinkhorn's plan `(…, n_query, n_way)`: columns sum to `per_class`, rows nearly to 1 (Hu et al. 2021, equation (6))"
    # far from every query a class would have a column of zeros; what is taken from a row's costs, dividing by its sum undoes
    plan = (-lam * (cost - cost.amin(-1, keepdim=True))).exp().clamp(min=1e-30)
    plan = plan / plan.sum((-2, -1), keepdim=True)
    rows, moving = plan.sum(-1, keepdim=True), torch.ones_like(plan[..., :1, :1], dtype=torch.bool)
    for _ in range(rounds):
        new = plan / (rows + eps)
        new = new * (per_class / new.sum(-2, keepdim=True))
        plan, before = torch.where(moving, new, plan), rows
        rows = plan.sum(-1, keepdim=True)
        moving = (rows - before).abs().amax((-2, -1), keepdim=True) > tol
        if not moving.any(): break
    return plan


@register_adaptation('pt_map')
@dataclass(kw_only=True)
class PTMAP(FeatureMethod):
    """Prototypes that move towards the queries that a transport plan assigns to them (Hu et al. 2021, Algorithm 1).

    Scores are probabilities. The method assumes equally many queries of each class, and harms where that is wrong. The
    defaults are easyfsl's; `PTMAP.published()` follows the authors' code, which centres support and queries separately.
    """
    transductive = True
    steps: int = 10 # Updates of the prototypes
    lr: float = 0.2 # Step size of the prototypes
    lam: float = 10. # Sharpness of the plan
    power: float = 0.5 # Exponent of the power transform
    treatment: Treatment = 'l2'
    own_centres: bool = False # As published: unit length and centring after the power, fractional queries per class

    @classmethod
    def published(cls, **kwargs) -> PTMAP:
        "The settings of the authors' code; keywords override them"
        return cls(**dict(dict(steps=20, treatment='un', own_centres=True), **kwargs))

    def _powered(self) -> Callable[[Tensor], Tensor]:
        if not self.own_centres: return lambda x: (x.clamp(min=0) + 1e-6)**self.power
        def centred(x: Tensor) -> Tensor:
            if (x < 0).any():
                raise ValueError('PTMAP.published() takes a power of the features: some are negative, use PTMAP() or an encoder '
                                 'that ends in a ReLU')
            x = unit((x + 1e-6)**self.power)
            return unit(x - x.mean(-2, keepdim=True))
        return centred

    def adapt(self, support: Tensor, member: Tensor, query: Tensor) -> Fitted:
        "Alternate between plan and prototypes; the last plan holds the scores"
        powered = self._powered()
        support, query = powered(support), powered(query)
        n_query, n_way = query.shape[-2], member.shape[-1]
        if n_query < n_way:
            raise ValueError(f'PTMAP shares out the queries among {n_way} classes, found {n_query}: give more, or use BDCSPN')
        share = n_query / n_way if self.own_centres else n_query // n_way
        w, both = means(support, member), torch.cat([support, query], -2)
        near = HalfSquareTo(query, w)
        plan_of = lambda w: transport_plan(-2 * near.scores(w), self.lam, share, 0. if self.own_centres else 1e-10)
        labels = member.expand(*w.shape[:-2], *member.shape[-2:])
        details = {'prototypes_before': w, 'first_plan': plan_of(w), 'support': support, 'query': query}
        for _ in range(self.steps):
            w = w + self.lr * (means(both, torch.cat([labels, plan_of(w)], -2)) - w)
        return Answers(scores=plan_of(w), details={**details, 'prototypes': w})
