"SimpleShot: nearest prototype of centred features at unit length (Wang et al. 2019)"
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .base import register_adaptation
from .features import FeatureMethod, Fitted, Nearest, Treatment, cosines, distances, means, squared_distances, unit

__all__ = ['SimpleShot', 'SupportCentred']


@register_adaptation('simple_shot')
@dataclass(kw_only=True)
class SimpleShot(FeatureMethod):
    """The nearest prototype of treated features (Wang et al. 2019, section 3).

    Prototypes are means of treated features and are not treated again. The best treatment in the paper is 'cl2', with the mean
    feature of the base classes as `centre`. Scores are cosines as in easyfsl, or negative distances as in the authors' code.
    """
    has_graph = True
    treatment: Treatment = 'l2'
    similarity: Literal['cosine', 'euclidean'] = 'cosine' # 'euclidean': negative distances

    def adapt(self, support: Tensor, member: Tensor, query: Tensor | None) -> Fitted:
        "Take class means as prototypes"
        similarity = cosines if self.similarity == 'cosine' else lambda x, w: -distances(x, w)
        return Nearest(prototypes=means(support, member), similarity=similarity)


@register_adaptation('support_centred')
@dataclass(kw_only=True)
class SupportCentred(FeatureMethod):
    """Negative squared distances between unit features minus the mean of the support, at unit length (Zou et al. 2024, FLoR).

    With one shot the scores are 2·cosine − 2.
    """
    has_graph = True
    treatment: Treatment = 'l2'

    def adapt(self, support: Tensor, member: Tensor, query: Tensor | None) -> Fitted:
        "Take class means of the centred unit features as prototypes"
        centre = support.mean(-2, keepdim=True)
        return Nearest(prototypes=means(unit(support - centre), member),
                       similarity=lambda x, w: -squared_distances(unit(x - centre), w))
