"ProtoNet: the class whose mean feature is nearest (Snell et al. 2017)"
from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from ..encode.encoder import Encoder
from ..tensors import Pool, cosine, full_precision, pool_vectors, single, unit, vector_size
from .base import FewShotModel, class_means
from .pairs import Pairs, pair_parts
from .registry import register_method

__all__ = ['ProtoNet']

Distance = Literal['euclidean', 'cosine']


@register_method('proto')
class ProtoNet(FewShotModel):
    """Prototypical network (Snell et al. 2017, equation (2)).

    Scores `(n_query, n_way)` are negative squared distances to the class means, or scaled cosines.
    """
    classes_apart = True

    def __init__(self,
        encoder: Encoder, # Images to feature maps, with `out_shape`
        n_way: int = 5, # Ignored: this method classifies any number of classes
        n_classes: int = 0, # Ignored: this method has no global classifier
        distance: Distance = 'euclidean', # 'euclidean' (negative and squared) or 'cosine'
        scale: float = 10., # Factor of the cosine
        pool: Pool = 'avg', # How maps become vectors: 'avg' or 'flatten'
        bias: float = 0., # Added to the cosine before it is scaled
    ):
        super().__init__(encoder, n_way, n_classes)
        if distance not in get_args(Distance): raise ValueError(f'distance={distance!r}: choose from {get_args(Distance)}')
        vector_size(encoder.out_shape, pool)
        self.distance, self.scale, self.pool, self.bias = distance, scale, pool, bias

    def process(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Pairs:
        "Class prototypes `(n_way, C)` and queries `(n_query, C)`"
        return Pairs(class_means(pool_vectors(f_support, self.pool), support_y), pool_vectors(f_query, self.pool))

    def classify(self, f_p: Pairs | Tensor) -> Tensor:
        "Scores `(n_query, n_way)` of `Pairs`, or of dense pairs `(n_query, n_way, 2C)`"
        support, query = pair_parts(f_p)
        if self.distance == 'cosine':
            similarity = cosine(query, support)
            return self.scale * (similarity + self.bias if self.bias else similarity)
        with full_precision(query): return -(single(query) - single(support)).square().sum(-1)

    def compared_vectors(self, f_support: Tensor, f_query: Tensor) -> tuple[Tensor, Tensor]:
        "The pooled maps, at unit length for a cosine; unchanged for −‖u − v‖² = 2u·v − ‖u‖² − ‖v‖²"
        support, query = pool_vectors(f_support, self.pool), pool_vectors(f_query, self.pool)
        return (unit(support), unit(query)) if self.distance == 'cosine' else (single(support), single(query))
