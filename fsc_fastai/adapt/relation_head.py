"RelationNet beside a fixed support, and in many episodes of the same images"
from __future__ import annotations

import torch
from torch import Tensor, nn

from ..as_built import as_built
from ..methods.head import PAIRS, Head, Statistics, head_for, spread
from ..methods.labels import class_means
from ..methods.relation import RelationModule, RelationNet, sums
from .head import PrototypeHead

__all__ = ['RelationHead', 'ConvolvedHead']

AT_ONCE = 512 # Images to convolve at once


@head_for(RelationNet)
class RelationHead(PrototypeHead):
    """A relation network, whose batch norms get the statistics of support samples paired with every prototype.

    A sample meets the prototype of its class without itself, as a query would; alone in its class, it meets itself.
    """
    def rehearse(self, f_support: Tensor, member: Tensor) -> None:
        "Classify the pairs"
        n_way = member.shape[1]
        chosen = spread(len(f_support) * n_way, PAIRS).to(member.device)
        sample, way = chosen // n_way, chosen % n_way
        f, own = f_support[sample], member[sample, way].view(-1, 1, 1, 1)
        shots = member.sum(0)[way].view(-1, 1, 1, 1)
        without = own * (shots > 1)
        prototypes = (self.support[way] * shots - without * f) / (shots - without)
        self.model.classify(torch.cat([prototypes, f], 1)[:, None])


@head_for(RelationNet)
class ConvolvedHead(Head):
    """A relation network where images meet in many episodes: the first convolution runs once an image.

    `compact` makes of an image what the convolution makes of it as class member and as query, side by side.
    """
    steps = 'process', 'classify', 'forward_head'
    together = False # The matrix products of an episode's pairs fill the cores of a CPU by themselves

    @classmethod
    def serves(cls, model: nn.Module, method: type, statistics: Statistics) -> bool:
        "Published statistics, and the module that it takes apart"
        return statistics == 'batch' and as_built(model, method, *cls.steps, relation=RelationModule)

    def _is_compact(self, f: Tensor) -> bool: return f.shape[1] == self.model.relation.layer1.conv.in_channels

    def compact(self, f: Tensor) -> Tensor:
        "Both `(n, 2C, H', W')`; maps that the module cannot classify as they are"
        if self._is_compact(f) or self.model.relation.problem(f): return f
        module = self.model.relation
        return torch.cat([torch.cat(module.layer1.convolved(part, part), 1) for part in f.split(AT_ONCE)])

    def scores(self, f_query: Tensor) -> Tensor:
        "Scores of maps, or of what `compact` made of them"
        module = self.model.relation
        if not self._is_compact(f_query): return super().scores(f_query)
        # a convolution is linear: the mean of what it makes of the members is what it makes of their mean
        support, query = class_means(self.support.chunk(2, 1)[0], self.member), f_query.chunk(2, 1)[1]
        if query.is_cpu:  # where norm and pool of small maps take a fifth of the time with channels last
            support, query = (part.contiguous(memory_format=torch.channels_last) for part in (support, query))
        return module.rest(module.layer1.rest(None, sums(support, query)), len(query), len(support))[0]
