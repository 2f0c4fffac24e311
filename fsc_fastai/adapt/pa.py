"PA, pre-classifier alignment: a linear map of the features, learned on the support (Li et al. 2021, URL)"
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .base import register_adaptation
from .features import FeatureMethod, Fitted, Nearest, cosines, cross_entropy, means, squared_distances
from .tuning import Adadelta, by_autograd, tune

__all__ = ['PA']


@register_adaptation('pa')
@dataclass(kw_only=True)
class PA(FeatureMethod):
    """Class means of features W·x, where W minimises the cross entropy of the support (Li et al. 2021, URL).

    Samples count in their own prototypes. W starts as the identity and is tuned by Adadelta, with gradients through the
    prototypes. The published learning rate is 1 for unseen domains and 0.1 for those that the encoder was trained on.
    """
    steps: int = 40 # Steps of Adadelta
    lr: float = 1. # Learning rate
    scale: float = 10. # Factor of the cosine
    similarity: Literal['cosine', 'euclidean'] = 'cosine' # 'euclidean': negative squared distances, without `scale`

    def numbers(self, n_support: int, n_query: int, n_way: int, d: int) -> int:
        "The size of W, its gradient and two mean squares"
        return 4 * d * d

    def adapt(self, support: Tensor, member: Tensor, query: Tensor | None) -> Fitted:
        "Learn W, then take class means of W·x as prototypes"
        cosine = self.similarity == 'cosine'
        score = lambda x, w: self.scale * cosines(x, w) if cosine else -squared_distances(x, w)

        by_z = by_autograd(lambda z: cross_entropy(score(z, means(z, member)), member))

        def slope(W: Tensor) -> tuple[Tensor, Tensor]:
            loss, g = by_z(support @ W.mT)
            return loss, g.mT @ support

        d = support.shape[-1]
        start = torch.eye(d, dtype=support.dtype, device=support.device).expand(*support.shape[:-2], d, d)
        W, losses = tune(slope, start, Adadelta(self.lr), self.steps)
        return Nearest(prototypes=means(support @ W.mT, member), similarity=score, transform=W, details={'losses': losses})
