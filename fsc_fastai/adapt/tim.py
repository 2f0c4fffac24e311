"TIM, transductive information maximisation: confident answers whose classes are balanced (Boudiaf et al. 2020)"
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .base import register_adaptation
from .features import Answers, FeatureMethod, Fitted, Nearest, Similarity, Treatment, cosines, means, squared_distances
from .tuning import Adam, tune

__all__ = ['TIM', 'TIMADM']


def _entropy(p: Tensor, eps: float = 0.) -> Tensor:
    return -(p * (p + eps).log()).sum(-1)


@register_adaptation('tim')
@dataclass(kw_only=True)
class TIM(FeatureMethod):
    """Prototypes tuned by a·CE(support) − b·H(mean answer) + c·mean H(answers) (Boudiaf et al. 2020, equation (3)).

    Defaults are those of easyfsl, on cosines; `TIM.published()` is TIM-GD of the authors' code, on distances.
    """
    transductive = True
    steps: int = 50 # Of Adam
    lr: float = 1e-4 # Its learning rate
    weights: tuple[float, float, float] = (1., 1., 0.1) # a, b, c
    temperature: float = 10. # Factor of the similarity
    similarity: Literal['cosine', 'euclidean'] = 'cosine' # 'euclidean': half the squared distance, negative
    eps: float = 0. # Added to probabilities in the cross entropy

    @classmethod
    def published(cls, **kwargs) -> TIM:
        "TIM-GD as in the authors' code: unit features, distances, cross entropy with weight 0.1, 1000 steps"
        return cls(**dict(dict(steps=1000, weights=(0.1, 1., 0.1), temperature=15., similarity='euclidean', eps=1e-12,
                               treatment='l2'), **kwargs))

    def adapt(self, support: Tensor, member: Tensor, query: Tensor | None) -> Fitted:
        "Tune the prototypes; cosines are returned without the temperature"
        assert query is not None
        a, b, c = self.weights
        bare: Similarity = cosines if self.similarity == 'cosine' else lambda x, w: -squared_distances(x, w) / 2

        def loss(w: Tensor) -> Tensor:
            p_support, p = ((self.temperature * bare(x, w)).softmax(-1) for x in (support, query))
            ce = -(member * (p_support + self.eps).log()).sum(-1).mean(-1)
            return a * ce - b * _entropy(p.mean(-2)) + c * _entropy(p, 1e-12).mean(-1)

        w, losses = tune(loss, means(support, member), Adam(self.lr), self.steps)
        similarity = cosines if self.similarity == 'cosine' else lambda x, w: self.temperature * bare(x, w)
        return Nearest(prototypes=w, similarity=similarity, details={'losses': losses})


@register_adaptation('tim_adm')
@dataclass(kw_only=True)
class TIMADM(FeatureMethod):
    "TIM by alternating direction: assignments and prototypes in closed form, in turn (Boudiaf et al. 2020, Proposition 1)"
    transductive = True
    steps: int = 150 # Rounds
    weights: tuple[float, float, float] = (0.1, 1., 0.1) # a, b, c as in `TIM`
    temperature: float = 15. # Factor of half the squared distance
    alpha: float = 1. # How far prototypes move to their new place
    treatment: Treatment = 'l2'

    def adapt(self, support: Tensor, member: Tensor, query: Tensor | None) -> Fitted:
        "Equations (5) and (6): Q, then w"
        assert query is not None
        a, b, c = self.weights
        s, r = a / (1 + c), support.shape[-2] / query.shape[-2]
        logits = lambda x, w: -self.temperature / 2 * squared_distances(x, w)
        w, Q = means(support, member), torch.zeros(())
        for _ in range(self.steps):
            P, P_support = logits(query, w).softmax(-1), logits(support, w).softmax(-1)
            Q = P**(1 + c)
            Q = Q / Q.sum(-2, keepdim=True)**(b / (b + 1))
            Q = Q / Q.sum(-1, keepdim=True)
            pull = lambda P, x, w: P.sum(-2)[..., None] * w - P.mT @ x  # Σ P (w − x)
            total = (s * (member.mT @ support + pull(P_support, support, w)) + r * (Q.mT @ query + pull(P, query, w)))
            new = total / (s * member.sum(-2) + r * Q.sum(-2))[..., None]
            w = w + self.alpha * (new - w)
        return Answers(scores=logits(query, w), details={'prototypes': w, 'assignments': Q})
