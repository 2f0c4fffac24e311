"MatchingNet: attention over the support samples, summed by their labels (Vinyals et al. 2016)"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encode.encoder import Encoder
from ..tensors import Pool, cosine, full_precision, pool_vectors, unit, vector_size
from .base import FewShotModel, one_hot
from .pairs import LabelledPairs
from .registry import register_method

__all__ = ['MatchingNet', 'FullContext']


class FullContext(nn.Module):
    "Full context embeddings: support samples see one another, queries see the support (Vinyals et al. 2016, appendix A)"
    def __init__(self,
        n_features: int, # Length of a vector
        n_steps: int = 5, # Processing steps of a query, K in equation (3)
    ):
        super().__init__()
        self.n_steps = n_steps
        self.support = nn.LSTM(n_features, n_features, bidirectional=True)
        self.query = nn.LSTMCell(2 * n_features, n_features)

    def forward(self,
        support: Tensor, # Vectors `(n_support, C)`, whose order matters
        query: Tensor, # Vectors `(n_query, C)`
    ) -> tuple[Tensor, Tensor]:
        "Both in the context of the support set, in the same shapes and the dtype of the weights, as LSTMs on CPUs need it"
        with full_precision(support):
            dtype = self.query.weight_hh.dtype
            return self._in_context(support.to(dtype), query.to(dtype))

    def _in_context(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        both_ways = self.support(support)[0]
        support = support + both_ways.unflatten(1, (2, -1)).sum(1)
        hidden, cell = query, torch.zeros_like(query)
        for _ in range(self.n_steps):
            read = (hidden @ support.T).softmax(1) @ support
            hidden, cell = self.query(torch.cat([query, read], 1), (hidden, cell))
            hidden = hidden + query
        return support, hidden


@register_method('matching')
class MatchingNet(FewShotModel):
    """Matching network (Vinyals et al. 2016, equation (1)).

    Scores `(n_query, n_way)` are log-probabilities: softmax attention by cosine over the support samples, summed over each class.
    """
    def __init__(self,
        encoder: Encoder, # Images to feature maps, with `out_shape`
        n_way: int = 5, # Ignored: this method classifies any number of classes
        n_classes: int = 0, # Ignored: this method has no global classifier
        scale: float = 10., # Factor of the cosine; published is 1, more sharpens the attention
        fce: bool = False, # Use full context embeddings
        pool: Pool = 'avg', # How maps become vectors: 'avg' or 'flatten'
    ):
        super().__init__(encoder, n_way, n_classes)
        self.scale, self.pool = scale, pool
        size = vector_size(encoder.out_shape, pool)
        self.context = FullContext(size) if fce else None
        self.vector_size = size if fce else None

    def process(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> LabelledPairs:
        "Support samples and queries as vectors, in full context if `fce`, with the labels of the samples"
        support, query = (pool_vectors(f, self.pool, self.vector_size) for f in (f_support, f_query))
        if self.context is not None: support, query = self.context(support, query)
        return LabelledPairs(support[None], query[:, None], one_hot(support_y))

    def classify(self, f_p: LabelledPairs) -> Tensor:
        "Log-probabilities `(n_query, n_way)`"
        attention = F.log_softmax(self.scale * cosine(f_p.query, f_p.support), 1)
        return (attention[:, :, None] + f_p.labels.log()).logsumexp(1)

    def evidence(self, f_p: LabelledPairs) -> Tensor:
        "Log-probabilities before they are normalised `(n_query, n_way)`"
        return ((self.scale * cosine(f_p.query, f_p.support))[:, :, None] + f_p.labels.log()).logsumexp(1)

    def compared_vectors(self, f_support: Tensor, f_query: Tensor) -> tuple[Tensor, Tensor] | None:
        "The pooled maps at unit length; None with full context, where vectors depend on the whole support set"
        if self.context is not None: return None
        return unit(pool_vectors(f_support, self.pool)), unit(pool_vectors(f_query, self.pool))
