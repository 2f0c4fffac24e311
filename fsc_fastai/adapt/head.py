"Heads that keep class means or vectors in place of the feature maps of the support"
from __future__ import annotations

import torch
from torch import Tensor

from ..methods import FEAT, CrossAttentionNet, MatchingNet, ProtoNet
from ..methods.head import PAIRS, Head, head_for
from ..methods.labels import class_means
from ..tensors import pool_vectors

__all__ = ['PrototypeHead', 'PooledPrototypes', 'VectorHead']


@head_for(MatchingNet)
class VectorHead(Head):
    "The head of methods that compare queries with every support sample as a vector"
    def compact(self, f: Tensor) -> Tensor:
        "Pooled vectors `(n, d)`"
        return pool_vectors(f, self.model.pool)


@head_for(CrossAttentionNet)
class PrototypeHead(Head):
    "The head of methods that compare queries with class means, which are all that it keeps"
    def condensed(self, f_support: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        "Class means `(n_way, ...)`, and their one-hot labels"
        labels = torch.eye(member.shape[1], dtype=member.dtype, device=member.device)
        return class_means(self.compact(f_support), member), labels

    def without_each(self, f_support: Tensor, member: Tensor, f_query: Tensor, which: Tensor | None = None) -> Tensor:
        "In one pass, if scores of classes are independent: without a sample its class mean is (n·mean − sample) / (n − 1)"
        if not (self.fixed and self.model.classes_apart): return super().without_each(f_support, member, f_query, which)
        f, own = self.compact(f_support), member.argmax(1)
        means, n = class_means(f, member), member.sum(0)[own].view(-1, *[1] * (f.ndim - 1))
        left = torch.where(n > 1, (means[own] * n - f) / (n - 1).clamp(min=1), 0.)
        which = torch.arange(len(f)) if which is None else which
        prototypes = torch.cat([means, left[which]])
        labels = torch.eye(len(prototypes)).to(prototypes)
        parts = f_query.split(max(1, PAIRS // len(labels)))
        scores = torch.cat([self.model.forward_head(prototypes, labels, part) for part in parts])
        found = scores[:, :len(means)].repeat(len(which), 1, 1)
        found[torch.arange(len(which)), :, own[which]] = scores[:, len(means):].T
        return found.masked_fill((n.flatten()[which] == 1)[:, None, None], float('nan'))


@head_for(ProtoNet, FEAT)
class PooledPrototypes(PrototypeHead):
    "The head of methods that compare queries with class means of vectors"
    compact = VectorHead.compact
