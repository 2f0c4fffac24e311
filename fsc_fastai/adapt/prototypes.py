"Prototypes tuned on the support (Chen et al. 2019), or also by the entropy of the queries (Dhillon et al. 2020)"
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import register_adaptation
from .features import FeatureMethod, Fitted, Nearest, cosines, distances, means
from .tuning import Adam, CosineTo, DistanceTo, through_softmax, tune

__all__ = ['TunedPrototypes', 'TransductiveTuning']


@register_adaptation('tuned_prototypes')
@dataclass(kw_only=True)
class TunedPrototypes(FeatureMethod):
    "Class means tuned by cross entropy of scaled cosines on the support (Chen et al. 2019, Baseline++), as easyfsl's Finetune"
    steps: int = 200 # Steps of Adam
    lr: float = 1e-4 # Learning rate
    temperature: float = 1. # Factor of the cosine

    def adapt(self, support: Tensor, member: Tensor, query: Tensor | None) -> Fitted:
        "Tune the class means; the scores are cosines without the temperature"
        start = means(support, member)
        similar, t = CosineTo(support, start), self.temperature
        w, losses = tune(lambda w: _labelled(similar, w, t, member), start, Adam(self.lr), self.steps)
        return Nearest(prototypes=w, similarity=cosines, details={'losses': losses})


@register_adaptation('transductive_tuning')
@dataclass(kw_only=True)
class TransductiveTuning(FeatureMethod):
    """Class means tuned by cross entropy on the support + entropy of the queries (Dhillon et al. 2020, equation (8)).

    As in easyfsl's TransductiveFinetuning only prototypes are tuned; the paper tunes the encoder too.
    """
    transductive = True
    steps: int = 25 # Steps of Adam
    lr: float = 5e-5 # Learning rate
    temperature: float = 1. # Factor of the distance

    def adapt(self, support: Tensor, member: Tensor, query: Tensor) -> Fitted:
        "Tune the class means with negative distances, not squared, as logits"
        start, t = means(support, member), self.temperature
        of_support, of_query = DistanceTo(support, start), DistanceTo(query, start)

        def slope(w: Tensor) -> tuple[Tensor, Tensor]:
            loss, g = _labelled(of_support, w, t, member)
            p = (t * of_query.scores(w)).softmax(-1)
            log = (p + 1e-12).log()
            back = of_query.back(through_softmax(p, -(log + p / (p + 1e-12))) / query.shape[-2])
            return loss - (p * log).sum(-1).mean(-1), g + t * back

        w, losses = tune(slope, start, Adam(self.lr), self.steps)
        return Nearest(prototypes=w, similarity=lambda x, w: -distances(x, w), details={'losses': losses})


def _labelled(similar: CosineTo | DistanceTo, w: Tensor, t: float, member: Tensor) -> tuple[Tensor, Tensor]:
    "Cross entropy of scores times a temperature, and its gradient by the prototypes"
    log = (t * similar.scores(w)).log_softmax(-1)
    return -(member * log).sum(-1).mean(-1), t * similar.back((log.exp() - member) / member.shape[-2])
