"A prototypical network on linearly aligned features, the result of task-specific adapters"
from __future__ import annotations

import torch
from torch import Tensor, nn

from ..encode.encoder import Encoder
from ..methods.base import class_means
from ..methods.pairs import Pairs
from ..methods.proto import Distance, ProtoNet
from ..methods.registry import register_method
from ..tensors import Pool, pool_vectors, vector_size

__all__ = ['AlignedProtoNet']


@register_method('aligned')
class AlignedProtoNet(ProtoNet):
    "A prototypical network on features W·x; W, the weight of `align`, starts as the identity (Li et al. 2022)"
    def __init__(self,
        encoder: Encoder, # Images to feature maps, with `out_shape`
        n_way: int = 5, # Ignored: this method classifies any number of classes
        n_classes: int = 0, # Ignored: this method has no global classifier
        distance: Distance = 'cosine', # 'euclidean' (squared, negative) or 'cosine'
        scale: float = 10., # Factor of the cosine
        pool: Pool = 'avg', # How maps become vectors: 'avg' or 'flatten'
    ):
        super().__init__(encoder, n_way, n_classes, distance, scale, pool)
        size = vector_size(encoder.out_shape, pool)
        self.align = nn.Linear(size, size, bias=False)
        with torch.no_grad(): nn.init.eye_(self.align.weight)

    def process(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Pairs:
        "Class prototypes and queries as aligned vectors"
        support, query = (self.align(pool_vectors(f, self.pool)) for f in (f_support, f_query))
        return Pairs(class_means(support, support_y), query)
