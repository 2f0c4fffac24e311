"LaplacianShot: nearest prototypes, smoothed so that neighbouring queries agree (Ziko et al. 2020)"
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .base import register_adaptation
from .bdcspn import rectified
from .features import Answers, FeatureMethod, Fitted, Treatment, cosines, means, nearest_one_hot, squared_distances

__all__ = ['LaplacianShot']

Rectify = Literal['easyfsl', 'original', 'no']


@register_adaptation('laplacian_shot')
@dataclass(kw_only=True)
class LaplacianShot(FeatureMethod):
    """Assignments that minimise distances to prototypes plus disagreement of neighbours (Ziko et al. 2020, equation (7)).

    Scores are probabilities. The defaults are easyfsl's; the authors' code has `lam=1.` (tuned on validation classes),
    `rectify='original'` and the treatment 'cl2'.
    """
    transductive = True
    steps: int = 20 # Most updates
    knn: int = 3 # Neighbours, including the query itself
    lam: float = 0.7 # Weight of the neighbours
    rectify: Rectify = 'easyfsl' # Rectified prototypes, in easyfsl's or the 'original' form; 'no': plain class means
    treatment: Treatment = 'un'

    def adapt(self, support: Tensor, member: Tensor, query: Tensor) -> Fitted:
        "Bound updates (equation (12)) until the energy (equation (6)) no longer changes"
        if self.rectify not in get_args(Rectify): raise ValueError(f'rectify={self.rectify!r}: one of {get_args(Rectify)}')
        if query.shape[-2] < self.knn:
            raise ValueError(f'LaplacianShot(knn={self.knn}) needs as many queries, found {query.shape[-2]}: use a smaller knn')
        if self.rectify == 'easyfsl': prototypes = rectified(support, member, query)
        elif self.rectify == 'no': prototypes = means(support, member)
        else: prototypes, query = _as_published(support, member, query)
        unary, W = squared_distances(query, prototypes), _neighbours(query, self.knn)
        Y, moving = (-unary).softmax(-1), torch.ones_like(unary[..., :1, :1], dtype=torch.bool)
        energy, pull = torch.full_like(unary[..., :1, :1], torch.inf), self.lam * (W @ Y)
        for i in range(self.steps):
            Y = torch.where(moving, (pull - unary).softmax(-1), Y)
            pull = self.lam * (W @ Y)
            before, energy = energy, (Y * (Y.clamp(min=1e-20).log() + unary - pull)).sum((-2, -1), keepdim=True)
            if i > 1:
                moving = moving & ((energy - before).abs() > 1e-6 * before.abs())
                if not moving.any(): break
        return Answers(scores=Y, details={'unary': unary, 'affinity': W, 'prototypes': prototypes})


def _neighbours(x: Tensor, knn: int) -> Tensor:
    "W `(…, n, n)`: 1 where j is among the knn − 1 nearest others of i; not symmetric"
    d, W = squared_distances(x, x), torch.zeros(*x.shape[:-1], x.shape[-2], dtype=x.dtype, device=x.device)
    d.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    return W.scatter_(-1, d.topk(knn - 1, largest=False).indices, 1.)


def _as_published(support: Tensor, member: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Prototypes and shifted queries as in the authors' code: samples count for the class they are nearest to, the support too.

    A class that no sample is nearest to keeps its plain mean; the authors' code would drop it.
    """
    shifted = query + (support.mean(-2) - query.mean(-2))[..., None, :]
    x, plain = torch.cat([support, shifted], -2), means(support, member)
    similar = 10 * cosines(x, plain)
    nearest = nearest_one_hot(similar)
    count = nearest.sum(-2)[..., None]
    prototypes = (similar.softmax(-1) * nearest).mT @ x / count.clamp(min=1)
    return torch.where(count > 0, prototypes, plain), shifted
