"BD-CSPN: prototypes rectified by their nearest queries (Liu et al. 2020)"
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import register_adaptation
from .features import FeatureMethod, Fitted, Nearest, Treatment, cosines, means, nearest_one_hot

__all__ = ['BDCSPN', 'rectified']


def rectified(
    support: Tensor, # `(…, n_support, d)`
    member: Tensor, # One-hot labels `(…, n_support, n_way)`
    query: Tensor, # `(…, n_query, d)`
) -> Tensor:
    """Prototypes `(…, n_way, d)` of the support samples and the nearest queries (Liu et al. 2020, section 3.3).

    Queries are first shifted to the mean of the support. As in easyfsl, weights are exp(cosine to the plain prototype).
    """
    shifted = query + (support.mean(-2) - query.mean(-2))[..., None, :]
    prototypes = means(support, member)
    similar = cosines(shifted, prototypes)
    weight_support = cosines(support, prototypes).exp() * member
    weight_query = similar.exp() * nearest_one_hot(similar)
    total = weight_support.sum(-2) + weight_query.sum(-2)
    return (weight_support.mT @ support + weight_query.mT @ shifted) / total[..., None]


@register_adaptation('bdcspn')
@dataclass(kw_only=True)
class BDCSPN(FeatureMethod):
    "Cosine similarity to rectified prototypes, which reduces cross-class and intra-class bias (Liu et al. 2020)"
    transductive = True
    treatment: Treatment = 'l2'

    def adapt(self, support: Tensor, member: Tensor, query: Tensor) -> Fitted:
        "Rectify the prototypes; the queries are scored without the shift"
        return Nearest(prototypes=rectified(support, member, query), similarity=cosines)
