"Heads of RelationNet, for a fixed support and for many episodes of the same images"
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..as_built import as_built
from ..kernels.small_conv import KeptKernel
from ..methods.head import PAIRS, Statistics, head_for, spread
from ..methods.labels import class_means
from ..methods.relation import RelationModule, RelationNet, sums
from .head import PrototypeHead

__all__ = ['RelationHead', 'ConvolvedHead']

AT_ONCE = 512 # Images to convolve at once


@head_for(RelationNet)
class RelationHead(PrototypeHead):
    """The head of a relation network, which fixes batch norms by pairs of the support samples with every prototype.

    As for a query, the prototype of a sample's own class excludes the sample, unless it is the only one of its class.
    """
    def rehearse(self, f_support: Tensor, member: Tensor) -> None:
        "Classify pairs of support samples and prototypes"
        n_way = member.shape[1]
        chosen = spread(len(f_support) * n_way, PAIRS).to(member.device)
        sample, way = chosen // n_way, chosen % n_way
        f, own = f_support[sample], member[sample, way].view(-1, 1, 1, 1)
        shots = member.sum(0)[way].view(-1, 1, 1, 1)
        without = own * (shots > 1)
        prototypes = (self.support[way] * shots - without * f) / (shots - without)
        self.model.classify(torch.cat([prototypes, f], 1)[:, None])


@head_for(RelationNet)
class ConvolvedHead(RelationHead):
    """The head of a relation network whose first convolution runs once per image, not once per pair.

    `compact` convolves an image both as support sample and as query and concatenates the results. With fixed statistics the
    convolved class means are kept. Weights are read when they are first needed.
    """
    steps = 'process', 'classify', 'forward_head'
    together = False # The matrix products of an episode's pairs fill the cores of a CPU by themselves
    convolved: Tensor
    _kept: Any = None

    def __init__(self, model: nn.Module, statistics: Statistics = 'batch'):
        super().__init__(model, statistics)
        self.register_buffer('convolved', torch.empty(0), persistent=False)

    @classmethod
    def serves(cls, model: nn.Module, method: type, statistics: Statistics) -> bool:
        "Is the relation module as it was built, so that its convolution can be split?"
        return as_built(model, method, *cls.steps, relation=RelationModule)

    @property
    def apart(self) -> bool:
        "Can the convolution be split now? Not with hooks added since, nor for an exported graph"
        return self.serves(self.model, RelationNet, 'support') and not torch.compiler.is_compiling()

    def _apply(self, *args: Any, **kwargs: Any) -> ConvolvedHead:
        self._kept = None  # the weights move to another device, or become another type
        return super()._apply(*args, **kwargs)

    @property
    def kernels(self) -> tuple[KeptKernel, KeptKernel, KeptKernel]:
        "The kernels of the first convolution for support samples and for queries, and of the second convolution"
        if self._kept is None:
            first, second = self.model.relation.layer1.conv, self.model.relation.layer2.conv
            of_support, of_query = first.weight.chunk(2, 1)
            self._kept = (KeptKernel(of_support, first.bias, first.padding), KeptKernel(of_query, None, first.padding),
                          KeptKernel(second.weight, second.bias, second.padding))
        return self._kept

    def _is_compact(self, f: Tensor) -> bool: return f.shape[1] == self.model.relation.layer1.conv.in_channels

    def compact(self, f: Tensor) -> Tensor:
        "Both convolutions `(n, 2C, H', W')`; maps are unchanged if statistics are fixed or the module cannot classify them"
        if self.fixed or self._is_compact(f) or self.model.relation.problem(f): return f
        return torch.cat([torch.cat([side(part) for side in self.kernels[:2]], 1) for part in f.split(AT_ONCE)])

    @torch.no_grad()
    def _fix(self, f_support: Tensor, member: Tensor) -> None:
        super()._fix(f_support, member)
        self.convolved = self.kernels[0](self.support)

    def scores(self, f_query: Tensor) -> Tensor:
        "Scores `(n_query, n_way)` of maps or of their `compact` form"
        if self.fixed:
            if not self.apart or self.model.relation.problem(f_query): return super().scores(f_query)
            support, query = self.convolved, self.kernels[1](f_query)
        elif not self._is_compact(f_query): return super().scores(f_query)
        # a convolution is linear: the mean of what it makes of the members is what it makes of their mean
        else: support, query = class_means(self.support.chunk(2, 1)[0], self.member), f_query.chunk(2, 1)[1]
        return self._scored(sums(support, query), len(query), len(support))

    def _scored(self, z: Tensor, n_query: int, n_way: int) -> Tensor:
        "Scores from what the first convolution makes of pairs"
        module = self.model.relation
        # norm and pool of small maps take a fifth of the time with channels last
        if z.is_cpu: z = z.contiguous(memory_format=torch.channels_last)
        layer1 = module.layer1.rest(None, z)
        layer2 = module.layer2.rest(layer1.pooled, self.kernels[2](layer1.pooled))
        return module.rest(layer1, layer2, n_query, n_way)[0]
