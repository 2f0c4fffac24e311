"FEAT: class prototypes that see one another by self-attention (Ye et al. 2020)"
from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..encode.encoder import Encoder
from ..tensors import Pool, full_precision, pool_vectors, single, unit, vector_size
from .base import FewShotModel, class_means
from .pairs import Pairs, pair_parts
from .registry import register_method

__all__ = ['FEAT', 'SetAttention']

Score = Literal['euclidean', 'cosine', 'distance']


class SetAttention(nn.Module):
    "Self-attention over the members of a set, one head, with a residual and a layer norm (Ye et al. 2020, equations (4)–(6))"
    def __init__(self,
        size: int, # Features of a member
        dropout: float = 0.5, # Dropout of the attention's output, in training
    ):
        super().__init__()
        self.w_qs, self.w_ks, self.w_vs = (nn.Linear(size, size, bias=False) for _ in range(3))
        self.fc, self.layer_norm, self.dropout = nn.Linear(size, size), nn.LayerNorm(size), nn.Dropout(dropout)
        for w in (self.w_qs, self.w_ks, self.w_vs): nn.init.normal_(w.weight, std=size**-0.5)
        nn.init.xavier_normal_(self.fc.weight)

    def weights(self, x: Tensor) -> Tensor:
        "Attention weights `(n, n)` of each member for the others; rows sum to 1"
        return (self.w_qs(x) @ self.w_ks(x).mT / x.shape[-1]**0.5).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        "Members `(n, size)` to members in the context of the set, same shape"
        return self.layer_norm(x + self.dropout(self.fc(self.weights(x) @ self.w_vs(x))))


@register_method('feat')
class FEAT(FewShotModel):
    """Few-shot embedding adaptation with a transformer (Ye et al. 2020): prototypes are adapted to the classes beside them.

    Scores `(n_query, n_way)` are −‖query − prototype‖² / temperature ('euclidean'), query · unit prototype / temperature as in
    the authors' code ('cosine'), or −‖query − prototype‖ as in easyfsl ('distance'). The loss is the cross entropy of the
    episode, without the paper's contrastive term.
    """
    def __init__(self,
        encoder: Encoder, # Images to feature maps, with `out_shape`
        n_way: int = 5, # Ignored: this method classifies any number of classes
        n_classes: int = 0, # Ignored: this method has no global classifier
        score: Score = 'euclidean', # 'euclidean', 'cosine' or 'distance'
        temperature: float = 64., # Divisor of 'euclidean' and 'cosine' scores
        dropout: float = 0.5, # Dropout within the attention, in training
        pool: Pool = 'avg', # How maps become vectors: 'avg' or 'flatten'
    ):
        super().__init__(encoder, n_way, n_classes)
        if score not in get_args(Score): raise ValueError(f'score={score!r}: choose from {get_args(Score)}')
        self.score, self.temperature, self.pool = score, temperature, pool
        self.slf_attn = SetAttention(vector_size(encoder.out_shape, pool), dropout)

    def process(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Pairs:
        "Adapted prototypes `(n_way, C)` and unchanged queries `(n_query, C)`"
        return Pairs(self.slf_attn(class_means(pool_vectors(f_support, self.pool), support_y)), pool_vectors(f_query, self.pool))

    def classify(self, f_p: Pairs | Tensor) -> Tensor:
        "Scores `(n_query, n_way)` of `Pairs`, or of dense pairs `(n_query, n_way, 2C)`"
        prototypes, query = (single(part) for part in pair_parts(f_p))
        with full_precision(query):
            if self.score == 'cosine': return (query * unit(prototypes)).sum(-1) / self.temperature
            squared = (query - prototypes).square().sum(-1)
            if self.score == 'euclidean': return -squared / self.temperature
            return -torch.where(squared > 0, squared, 1.).sqrt().where(squared > 0, 0.)
