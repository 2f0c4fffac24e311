"Prototypes tuned on the support, and by the entropy of the queries (Chen et al. 2019; Dhillon et al. 2020)"
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import register_adaptation
from .features import FeatureMethod, Fitted, Nearest, cosines, cross_entropy, distances, means
from .tuning import Adam, tune

__all__ = ['TunedPrototypes', 'TransductiveTuning']


@register_adaptation('tuned_prototypes')
@dataclass(kw_only=True)
class TunedPrototypes(FeatureMethod):
    "Class means tuned by cross entropy of scaled cosines on the support (Chen et al. 2019, Baseline++); easyfsl's Finetune"
    steps: int = 200 # Of Adam
    lr: float = 1e-4 # Its learning rate
    temperature: float = 1. # Factor of the cosine

    def adapt(self, support: Tensor, member: Tensor, query: Tensor | None) -> Fitted:
        "Scores are bare cosines"
        loss = lambda w: cross_entropy(self.temperature * cosines(support, w), member)
        w, losses = tune(loss, means(support, member), Adam(self.lr), self.steps)
        return Nearest(prototypes=w, similarity=cosines, details={'losses': losses})


@register_adaptation('transductive_tuning')
@dataclass(kw_only=True)
class TransductiveTuning(FeatureMethod):
    """Class means tuned by cross entropy on the support + entropy of the queries (Dhillon et al. 2020, equation (8)).

    As easyfsl's TransductiveFinetuning: prototypes alone are tuned, where the paper tunes the encoder too.
    """
    transductive = True
    steps: int = 25 # Of Adam
    lr: float = 5e-5 # Its learning rate
    temperature: float = 1. # Factor of the distance

    def adapt(self, support: Tensor, member: Tensor, query: Tensor | None) -> Fitted:
        "Logits are negative distances, not squared"
        assert query is not None
        def loss(w: Tensor) -> Tensor:
            p = (-self.temperature * distances(query, w)).softmax(-1)
            return cross_entropy(-self.temperature * distances(support, w), member) - (p * (p + 1e-12).log()).sum(-1).mean(-1)
        w, losses = tune(loss, means(support, member), Adam(self.lr), self.steps)
        return Nearest(prototypes=w, similarity=lambda x, w: -distances(x, w), details={'losses': losses})
