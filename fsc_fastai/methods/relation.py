"RelationNet: a small convolutional network scores pairs of a class prototype and a query (Sung et al. 2018)"
from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from ..as_built import as_built, blueprint
from ..encode.encoder import Encoder
from ..kernels.small_conv import SmallConv2d, conv_small
from .base import FewShotModel, class_means
from .losses import EpisodeCrossEntropy, SigmoidMSE
from .pairs import Pairs
from .registry import register_method

__all__ = ['RelationNet', 'RelationModule', 'RelationBlock', 'RelationTrace', 'BlockTrace', 'sums']

RelationLoss = Literal['ce', 'mse']


class BlockTrace(NamedTuple):
    """The activations of a `RelationBlock` for all n_query·n_way pairs, query-major.

    The ReLU was open where `active > 0`; `F.max_unpool2d(r, where, 2, output_size=active.shape)` undoes the pool.
    """
    x: Any # Input of `conv`: maps `(n, C, H, W)`, or `Pairs` in the first block
    active: Tensor # Output of the ReLU, input of the pool
    pooled: Tensor # Output of the pool
    where: Tensor # Indices of the pool


class RelationTrace(NamedTuple):
    "The activations of a `RelationModule` that relevance propagation needs, attached to their autograd graph"
    layer1: BlockTrace
    layer2: BlockTrace
    flat: Tensor # Input of `fc1` `(n, features)`: `layer2.pooled`, pooled to the trained size if it differs
    hidden: Tensor # Input of `fc2` `(n, hidden)`: after the ReLU


class KeepingPool(nn.MaxPool2d):
    "Max-pool by 2 that leaves a map of 1×1 as it is; returns the indices too"
    def __init__(self, ceil_mode: bool): # Always round sizes up; False: only where they would become 0
        super().__init__(2, ceil_mode=ceil_mode, return_indices=True)

    def forward(self, x: Tensor) -> Any:
        return F.max_pool2d(x, 2, ceil_mode=self.ceil_mode or min(x.shape[-2:]) < 2, return_indices=True)


class RelationBlock(nn.Module):
    "Convolution 3×3, batch norm with batch statistics always, ReLU, max-pool by 2"
    def __init__(self,
        n_in: int, # Channels in
        n_out: int, # Channels out
        padding: int, # Padding of the convolution
        ceil_mode: bool, # The pool rounds sizes up
    ):
        super().__init__()
        self.conv = SmallConv2d(n_in, n_out, 3, padding=padding)
        self.norm = nn.BatchNorm2d(n_out, track_running_stats=False)
        self.relu = nn.ReLU()
        self.pool = KeepingPool(ceil_mode)

    def forward(self, x: Tensor | Pairs) -> BlockTrace:
        "Maps `(n, n_in, H, W)`, or `Pairs` with `n_in`/2 channels each, to the activations of the block"
        if isinstance(x, Pairs) and not as_built(self, RelationBlock, conv=SmallConv2d): x = x.features.flatten(0, 1)
        return self.rest(x, sums(*self.convolved(x.support, x.query)) if isinstance(x, Pairs) else self.conv(x))

    def convolved(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        "The convolution of prototypes and of queries, separately: the sum of both is the convolution of the pair"
        w_support, w_query = self.conv.weight.chunk(2, 1)
        return (conv_small(support, w_support, self.conv.bias, self.conv.padding),
                conv_small(query, w_query, padding=self.conv.padding))

    def rest(self, x: Any, z: Tensor) -> BlockTrace:
        "The block after the convolution, which turned `x` into `z`"
        active = self.relu(self.norm(z))
        return BlockTrace(x, active, *self.pool(active))


def sums(
    support: Tensor, # `(n_way, C, H, W)`
    query: Tensor, # `(n_query, C, H, W)`
) -> Tensor:
    "The sum of every pair `(n_query·n_way, C, H, W)`, so that n_way + n_query maps are convolved, not n_way·n_query"
    return (support[None] + query[:, None]).flatten(0, 1)


class RelationModule(nn.Module):
    """Two convolutional blocks and two linear layers score a pair of maps (Sung et al. 2018, Figure 2).

    Maps of another size than in training are pooled to the trained size before the linear layers. Raises `ValueError` for
    maps that are too small.
    """
    def __init__(self,
        out_shape: tuple[int, int, int], # (C, H, W) of the encoder's maps
        hidden: int = 8, # Features between the two linear layers
    ):
        super().__init__()
        c, h, w = out_shape
        padding = int(min(h, w) < 10)
        # rounding down, two pools reduce a side below 4 to nothing
        ceil_mode = min(h, w) < 4
        self.layer1 = RelationBlock(2 * c, c, padding, ceil_mode)
        self.layer2 = RelationBlock(c, c, padding, ceil_mode)
        self.map_size = (self._shrunk(h, padding, ceil_mode), self._shrunk(w, padding, ceil_mode))
        self.fc1 = nn.Linear(c * self.map_size[0] * self.map_size[1], hidden)
        self.fc2 = nn.Linear(hidden, 1)
        self.blueprint = blueprint(self)

    @staticmethod
    def _shrunk(side: int, padding: int, ceil_mode: bool) -> int:
        for _ in range(2): side = max((side - 2 + 2 * padding + ceil_mode) // 2, 1)
        return side

    def forward(self, pairs: Pairs | Tensor) -> tuple[Tensor, RelationTrace]:
        "Scores `(n_query, n_way)` and the trace, from `Pairs` of maps or dense pairs `(n_query, n_way, 2C, H, W)`"
        problem = self.problem(pairs.query if isinstance(pairs, Pairs) else pairs)
        if problem: raise ValueError(problem)
        n_query, n_way = ((pairs.query.shape[0], pairs.support.shape[0]) if isinstance(pairs, Pairs) else pairs.shape[:2])
        layer1 = self.layer1(pairs if isinstance(pairs, Pairs) else pairs.flatten(0, 1))
        return self.rest(layer1, self.layer2(layer1.pooled), n_query, n_way)

    def rest(self, layer1: BlockTrace, layer2: BlockTrace, n_query: int, n_way: int) -> tuple[Tensor, RelationTrace]:
        "The module after both blocks"
        same = tuple(layer2.pooled.shape[-2:]) == self.map_size
        flat = (layer2.pooled if same else F.adaptive_avg_pool2d(layer2.pooled, self.map_size)).flatten(1)
        hidden = F.relu(self.fc1(flat))
        return self.fc2(hidden).view(n_query, n_way), RelationTrace(layer1, layer2, flat, hidden)

    def problem(self, maps: Tensor) -> str | None:
        "The reason why maps `(…, H, W)` of this size cannot be classified, or None"
        h, w = maps.shape[-2:]
        return (f'A relation module trained on maps of 10×10 or more needs 8×8 at least, found {h}×{w}: '
                'use larger images, or train at this size') if not self.layer1.conv.padding[0] and min(h, w) < 8 else None


@register_method('relation', 'rn')
class RelationNet(FewShotModel):
    """RelationNet (Sung et al. 2018; Table I of Sun et al. 2020): pairwise concatenation, then the relation module.

    Scores `(n_query, n_way)` are the outputs of the relation module before the sigmoid. As published, its batch norms always
    use the statistics of the episode, so a score depends on the other queries.
    """
    def __init__(self,
        encoder: Encoder, # Images to feature maps, with `out_shape`
        n_way: int = 5, # Ignored: this method classifies any number of classes
        n_classes: int = 0, # Ignored: this method has no global classifier
        hidden: int = 8, # Features between the two linear layers
        loss: RelationLoss = 'ce', # 'ce': cross entropy; 'mse': squared error of sigmoid scores, as published
    ):
        super().__init__(encoder, n_way, n_classes)
        if loss not in get_args(RelationLoss): raise ValueError(f'loss={loss!r}: choose from {get_args(RelationLoss)}')
        self.loss = loss
        self.relation = RelationModule(encoder.out_shape, hidden)

    def process(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Pairs:
        "Class prototypes `(n_way, C, H, W)` and queries `(n_query, C, H, W)`"
        return Pairs(class_means(f_support, support_y), f_query, encoded=True)

    def classify(self, f_p: Pairs | Tensor) -> Tensor:
        "Relation scores `(n_query, n_way)` of `Pairs`, or of dense pairs `(n_query, n_way, 2C, H, W)`"
        return self.relation(f_p)[0]

    def classify_with_trace(self, f_p: Pairs | Tensor) -> tuple[Tensor, RelationTrace]:
        "Scores as `classify` returns them, and the activations on the way"
        return self.relation(f_p)

    def default_loss(self) -> nn.Module:
        "Cross entropy, or the mean squared error of the publication, as `loss` says"
        return SigmoidMSE() if self.loss == 'mse' else EpisodeCrossEntropy()
