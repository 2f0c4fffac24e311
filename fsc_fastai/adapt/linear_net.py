"A linear classifier for the classes of one support, the result of fine-tuning"
from __future__ import annotations

from torch import Tensor, nn

from ..encode.encoder import Encoder
from ..methods.base import FewShotModel
from ..methods.registry import register_method
from ..tensors import Pool, pool_vectors, vector_size

__all__ = ['LinearNet']


@register_method('linear')
class LinearNet(FewShotModel):
    "A linear layer on pooled features; scores `(n_query, n_way)` are of the classes of the support that it was tuned on"
    any_way = False

    def __init__(self,
        encoder: Encoder, # Images to feature maps, with `out_shape`
        n_way: int = 5, # Classes of the support
        n_classes: int = 0, # Ignored: this method has no global classifier
        pool: Pool = 'avg', # How maps become vectors: 'avg' or 'flatten'
    ):
        super().__init__(encoder, n_way, n_classes)
        self.pool = pool
        self.fc = nn.Linear(vector_size(encoder.out_shape, pool), n_way)

    def process(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Tensor:
        "Queries as vectors `(n_query, C)`; the support is not used, since the weights have learned it"
        return pool_vectors(f_query, self.pool)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        "Scores `(n_query, n_way)` of query images; the support is not encoded"
        return self.classify(pool_vectors(self.encode(query_x), self.pool))

    def classify(self, f_p: Tensor) -> Tensor:
        "Scores `(n_query, n_way)`"
        return self.fc(f_p)
