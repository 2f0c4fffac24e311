"TIM, transductive information maximisation: confident and balanced predictions of the queries (Boudiaf et al. 2020)"
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .base import register_adaptation
from .features import Answers, FeatureMethod, Fitted, Nearest, Treatment, cosines, means, squared_distances
from .tuning import Adam, CosineTo, HalfSquareTo, through_softmax, tune

__all__ = ['TIM', 'TIMADM']


@register_adaptation('tim')
@dataclass(kw_only=True)
class TIM(FeatureMethod):
    """Prototypes that minimise a·CE(support) − b·H(mean prediction) + c·mean H(predictions) (Boudiaf et al. 2020, equation (3)).

    The defaults are easyfsl's, on cosines; `TIM.published()` is TIM-GD of the authors' code, on distances.
    """
    transductive = True
    steps: int = 50 # Steps of Adam
    lr: float = 1e-4 # Learning rate
    weights: tuple[float, float, float] = (1., 1., 0.1) # a, b, c
    temperature: float = 10. # Factor of the similarity
    similarity: Literal['cosine', 'euclidean'] = 'cosine' # 'euclidean': negative half of the squared distance
    eps: float = 0. # Added to probabilities in the cross entropy

    @classmethod
    def published(cls, **kwargs) -> TIM:
        "The settings of TIM-GD in the authors' code: unit features, distances, cross entropy with weight 0.1, 1000 steps"
        return cls(**dict(dict(steps=1000, weights=(0.1, 1., 0.1), temperature=15., similarity='euclidean', eps=1e-12,
                               treatment='l2'), **kwargs))

    def adapt(self, support: Tensor, member: Tensor, query: Tensor) -> Fitted:
        "Tune the prototypes; scores are cosines without the temperature"
        (a, b, c), cosine, start = self.weights, self.similarity == 'cosine', means(support, member)
        n, t = support.shape[-2], self.temperature
        similar = (CosineTo if cosine else HalfSquareTo)(torch.cat([support, query], -2), start)

        def slope(w: Tensor) -> tuple[Tensor, Tensor]:
            p = (t * similar.scores(w)).softmax(-1)
            labelled, p_query = p[..., :n, :] + self.eps, p[..., n:, :]
            mean, log = p_query.mean(-2, keepdim=True), (p_query + 1e-12).log()
            loss = (-a * (member * labelled.log()).sum((-2, -1)) / n + b * (mean * mean.log()).sum((-2, -1))
                    - c * (p_query * log).sum((-2, -1)) / query.shape[-2])
            g = torch.cat([-a / n * member / labelled, (b * mean.log() - c * log) / query.shape[-2]], -2)
            return loss, t * similar.back(through_softmax(p, g))

        w, losses = tune(slope, start, Adam(self.lr), self.steps)
        similarity = cosines if cosine else lambda x, w: -self.temperature / 2 * squared_distances(x, w)
        return Nearest(prototypes=w, similarity=similarity, details={'losses': losses})


@register_adaptation('tim_adm')
@dataclass(kw_only=True)
class TIMADM(FeatureMethod):
    "TIM by alternating direction: closed forms of assignments and prototypes in turn (Boudiaf et al. 2020, Proposition 1)"
    transductive = True
    steps: int = 150 # Rounds
    weights: tuple[float, float, float] = (0.1, 1., 0.1) # a, b, c as in `TIM`
    temperature: float = 15. # Factor of half the squared distance
    alpha: float = 1. # Step size of the prototypes
    treatment: Treatment = 'l2'

    def adapt(self, support: Tensor, member: Tensor, query: Tensor) -> Fitted:
        "Alternate between assignments Q and prototypes w, equations (5) and (6)"
        a, b, c = self.weights
        s, r, labelled = a / (1 + c), support.shape[-2] / query.shape[-2], member.mT @ support
        w, Q = means(support, member), torch.zeros(())
        near_support, near_query = HalfSquareTo(support, w), HalfSquareTo(query, w)
        for _ in range(self.steps):
            P_support, P = ((self.temperature * o.scores(w)).softmax(-1) for o in (near_support, near_query))
            Q = P**(1 + c)
            Q = Q / Q.sum(-2, keepdim=True)**(b / (b + 1))
            Q = Q / Q.sum(-1, keepdim=True)
            # ΣP(w − x) is what moves w back where answers and labels agree
            total = s * (labelled - near_support.back(P_support)) + r * (Q.mT @ query - near_query.back(P))
            new = total / (s * member.sum(-2) + r * Q.sum(-2))[..., None]
            w = w + self.alpha * (new - w)
        return Answers(scores=self.temperature * near_query.scores(w), details={'prototypes': w, 'assignments': Q})
