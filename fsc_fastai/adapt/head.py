"Heads that keep less than all feature maps of the support: class means, or vectors"
from __future__ import annotations

import torch
from torch import Tensor

from ..methods import FEAT, CrossAttentionNet, MatchingNet, ProtoNet
from ..methods.head import Head, head_for
from ..methods.labels import class_means
from ..tensors import pool_vectors

__all__ = ['PrototypeHead', 'PooledPrototypes', 'VectorHead']


@head_for(MatchingNet)
class VectorHead(Head):
    "Methods that compare with every support sample, as a vector"
    def compact(self, f: Tensor) -> Tensor:
        "Pooled vectors `(n, d)`"
        return pool_vectors(f, self.model.pool)


@head_for(CrossAttentionNet)
class PrototypeHead(Head):
    "Methods that compare with class means: these are kept, in the place of the samples"
    def condensed(self, f_support: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        "Class means, a label each"
        labels = torch.eye(member.shape[1], dtype=member.dtype, device=member.device)
        return class_means(self.compact(f_support), member), labels


@head_for(ProtoNet, FEAT)
class PooledPrototypes(PrototypeHead):
    "Class means of vectors"
    compact = VectorHead.compact
