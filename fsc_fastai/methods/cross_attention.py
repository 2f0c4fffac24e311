"CrossAttentionNet: support and query highlight in each other what they share (Hou et al. 2019)"
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encode.encoder import Encoder
from ..tensors import cosine, full_precision, single, unit
from .base import FewShotModel, Processed, class_means
from .losses import CrossAttentionLoss
from .registry import register_method

__all__ = ['CrossAttentionNet', 'CrossAttention', 'Attended']


@dataclass
class Attended(Processed):
    "Each query and each class prototype after they attended to one another; `features` is the query's side"
    support: Tensor # `(n_query, n_way, C, H, W)`
    query: Tensor # `(n_query, n_way, C, H, W)`

    @property
    def features(self) -> Tensor: # type: ignore[override]
        "The attended queries `(n_query, n_way, C, H, W)`"
        return self.query

    def with_features(self, features: Tensor) -> Attended:
        "The same support with other queries"
        return replace(self, query=features)


class CrossAttention(nn.Module):
    """Residual attention maps from the correlation of two feature maps (Hou et al. 2019, section 3.2).

    The correlation of all pairs of positions is never materialised: its mean over one side and its weighted mean over the
    other are both products with a mean feature.
    """
    def __init__(self,
        n_positions: int, # H·W of the feature maps
        temperature: float = 0.025, # Temperature of the softmax over positions, equation (4)
    ):
        super().__init__()
        self.temperature = temperature
        n_inner = max(n_positions // 6, 1)
        self.shrink = nn.Conv2d(n_positions, n_inner, 1)
        self.norm = nn.BatchNorm2d(n_inner)
        self.expand = nn.Conv2d(n_inner, n_positions, 1)
        for conv in (self.shrink, self.expand): nn.init.kaiming_normal_(conv.weight, mode='fan_out')

    def attention(self,
        a: Tensor, # Unit features `(n_a, C, H·W)` to be attended
        b: Tensor, # Unit features `(n_b, C, H·W)` that attend
    ) -> Tensor:
        "Attention of every `a` for every `b` `(n_a, n_b, H·W)`: 1 + softmax over the positions of `a`"
        n = a.shape[2]
        correlation = torch.einsum('ac,bcj->abj', a.mean(2), b)
        x = correlation.reshape(-1, n, 1, 1).to(self.shrink.weight.dtype)
        kernel = single(self.expand(F.relu(self.norm(self.shrink(x))))).reshape(correlation.shape)
        fused = torch.einsum('aci,abc->abi', a, torch.einsum('bcj,abj->abc', b, kernel) / n)
        return 1 + F.softmax(fused / self.temperature, -1)

    def forward(self,
        support: Tensor, # Prototypes `(n_way, C, H, W)`
        query: Tensor, # Queries `(n_query, C, H, W)`
    ) -> tuple[Tensor, Tensor]:
        "Attention maps of the prototypes `(n_way, n_query, H, W)` and of the queries `(n_query, n_way, H, W)`"
        size = support.shape[-2:]
        with full_precision(support):
            s, q = unit(support.flatten(2), 1), unit(query.flatten(2), 1)
            return self.attention(s, q).unflatten(2, size), self.attention(q, s).unflatten(2, size)


@register_method('cross_attention', 'can')
class CrossAttentionNet(FewShotModel):
    """CAN (Hou et al. 2019; Table I of Sun et al. 2020): the cross attention module, then cosine similarity.

    In training every position has scores, and with `n_classes` a global classifier scores the classes of the training domain.
    The attention module knows the positions of the trained map size, so maps of another size are pooled to it.
    """
    guidance = (0., 1.), (0., 1.)
    classes_apart = True

    def __init__(self,
        encoder: Encoder, # Images to feature maps, with `out_shape`
        n_way: int = 5, # Ignored: this method classifies any number of classes
        n_classes: int = 0, # Classes of the training domain, for the global classifier; 0: no global classifier
        scale: float = 7., # Factor of the cosine
        temperature: float = 0.025, # Temperature of the attention
    ):
        super().__init__(encoder, n_way, n_classes)
        c, h, w = encoder.out_shape
        self.scale, self.map_size = scale, (h, w)
        self.attention = CrossAttention(h * w, temperature)
        self.classifier = nn.Conv2d(c, n_classes, 1) if n_classes else None

    def attention_maps(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> tuple[Tensor, Tensor]:
        "Attention maps of the queries and of the classes, both `(n_query, n_way, H, W)`"
        of_class, of_query = self.attention(self._trained_size(class_means(f_support, support_y)), self._trained_size(f_query))
        return of_query, of_class.transpose(0, 1)

    def process(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Attended:
        "Prototypes and queries `(n_query, n_way, C, H, W)`, each weighted by its attention for the other"
        support, query = self._trained_size(class_means(f_support, support_y)), self._trained_size(f_query)
        a_support, a_query = self.attention(support, query)
        return Attended(support[None] * a_support.transpose(0, 1)[:, :, None].to(support.dtype),
                        query[:, None] * a_query[:, :, None].to(query.dtype))

    def _trained_size(self, f: Tensor) -> Tensor:
        return f if tuple(f.shape[-2:]) == self.map_size else F.adaptive_avg_pool2d(f, self.map_size)

    def classify(self, f_p: Attended) -> Tensor:
        "Scaled cosine of the spatial means `(n_query, n_way)`"
        return self.scale * cosine(f_p.query.mean((-2, -1)), f_p.support.mean((-2, -1)))

    def compared_vectors(self, f_support: Tensor, f_query: Tensor) -> tuple[Tensor, Tensor]:
        "Spatial means of both maps after cross attention, at unit length"
        f_p = self.process(f_support, torch.zeros(1, dtype=torch.long, device=f_support.device), f_query)
        return unit(f_p.support[0].mean((-2, -1))), unit(f_p.query[0].mean((-2, -1)))

    def training_output(self, f_p: Attended) -> Tensor | tuple[Tensor, Tensor]:
        "Scores at every position `(n_query, n_way, H, W)`; with a global classifier also its `(n_query, n_way, n_classes, H, W)`"
        with full_precision(f_p.query):
            prototype = unit(f_p.support.mean((-2, -1)))
            scores = self.scale * torch.einsum('qwc,qwchv->qwhv', prototype, unit(f_p.query, 2))
        if self.classifier is None: return scores
        return scores, self.classifier(f_p.query.flatten(0, 1)).unflatten(0, f_p.query.shape[:2])

    def default_loss(self) -> nn.Module:
        "Dense global cross entropy plus half the episodic one"
        return CrossAttentionLoss()
