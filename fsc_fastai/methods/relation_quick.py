"""The relation module where the same images meet in many pairs, on a CPU: what concerns one image alone is computed once.

The first convolution of a pair is a sum of what it makes of either image, so it moves to where images are prepared. Normalisation
is an affine function of each channel, so it moves before that sum too, and its statistics over all pairs follow from those of
prototypes and queries. What is left for each pair is a sum, a maximum, and the second convolution. Nothing here has gradients.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..as_built import as_built
from ..kernels.small_conv import TurnedKernel
from .base import class_means

if TYPE_CHECKING:
    from .relation import KeepingPool, RelationModule

__all__ = ['QuickRelation']

Statistics = tuple[Tensor, Tensor]


class QuickRelation:
    """A relation module in eval mode: `prepare` images once, then `forward_head` as of the model, for any number of episodes.

    Prepared images are `(n, H, W, 2C)`: what the first convolution makes of them as class members, then as queries. Positions
    come before pairs inside, so that a tap of the second convolution is one matrix product.
    """
    @torch.no_grad()
    def __init__(self, module: RelationModule): # Its weights and fixed statistics are read now
        self.module = module
        first, second = module.layer1.conv, module.layer2.conv
        of_support, of_query = first.weight.chunk(2, 1)
        self.of_support = TurnedKernel(of_support, first.bias, first.padding)
        self.of_query = TurnedKernel(of_query, None, first.padding)
        self.of_pair = TurnedKernel(second.weight, second.bias, second.padding)

    def serves(self, maps: Tensor) -> bool:
        "Whether it is the way for these maps: on a CPU, in eval mode, in full precision, without gradients; module as built"
        if torch.is_grad_enabled() and maps.requires_grad: return False
        precise = maps.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled('cpu')
        return maps.device.type == 'cpu' and precise and not self.module.training and (
            self.module.problem(maps) is None and as_built(self.module, type(self.module)))

    def prepared(self, f: Tensor) -> tuple[QuickRelation, Tensor]:
        "As of the model, for images that are prepared already"
        return self, f

    @torch.no_grad()
    def prepare(self,
        f: Tensor, # Feature maps of images `(n, C, H, W)`
        bs: int = 512, # Images at once
    ) -> Tensor:
        "What the first convolution makes of each image, as class member and as query, side by side"
        return torch.cat([torch.cat([self.as_support(part), self.as_query(part)], 3) for part in f.split(bs)])

    @torch.no_grad()
    def as_support(self, f: Tensor) -> Tensor:
        "What the first convolution makes of class members or prototypes `(n, C, H, W)`: `(n, H, W, C)`"
        return self.of_support(f.permute(2, 3, 0, 1)).permute(2, 0, 1, 3)

    @torch.no_grad()
    def as_query(self, f: Tensor) -> Tensor:
        "What the first convolution makes of queries `(n, C, H, W)`: `(n, H, W, C)`"
        return self.of_query(f.permute(2, 3, 0, 1)).permute(2, 0, 1, 3)

    def forward_head(self,
        f_support: Tensor, # Prepared images `(n_support, H, W, 2C)`
        support_y: Tensor, # Labels `(n_support,)`, or one-hot `(n_support, n_way)`
        f_query: Tensor, # Prepared images `(n_query, H, W, 2C)`
    ) -> Tensor:
        "Scores `(n_query, n_way)`"
        # a convolution is linear: the mean of what it makes of the members is what it makes of their mean
        return self.classify(class_means(f_support.chunk(2, 3)[0], support_y), f_query.chunk(2, 3)[1])

    @torch.no_grad()
    def classify(self,
        support: Tensor, # `as_support` of prototypes `(n_way, H, W, C)`
        query: Tensor, # `as_query` of queries `(n_query, H, W, C)`
    ) -> Tensor:
        "Scores `(n_query, n_way)`"
        module = self.module
        support, query = support.permute(1, 2, 0, 3), query.permute(1, 2, 0, 3)
        scale, shift = _affine(module.layer1.norm, partial(_grid_statistics, support, query))
        support, query = support * scale + shift, query * scale
        pooled = _pooled(module.layer1.pool, lambda i, j: (query[i, j][:, None] + support[i, j]).flatten(0, 1), query).relu_()
        z = self.of_pair(pooled)
        scale, shift = _affine(module.layer2.norm, partial(_statistics, z))
        z = torch.addcmul(shift, z, scale)
        pooled = _pooled(module.layer2.pool, lambda i, j: z[i, j], z).relu_()
        maps = pooled.permute(2, 3, 0, 1)
        flat = (maps if tuple(maps.shape[-2:]) == module.map_size else F.adaptive_avg_pool2d(maps, module.map_size)).flatten(1)
        return module.fc2(F.relu(module.fc1(flat))).view(query.shape[2], support.shape[2])


def _affine(norm: Any, batch: Callable[[], Statistics]) -> tuple[Tensor, Tensor]:
    "A batch norm as scale and shift of each channel: by its fixed statistics if it has any, else by those of the batch"
    fixed = norm.running_mean, norm.running_var
    mean, var = batch() if fixed[0] is None else fixed
    scale = norm.weight * torch.rsqrt(var + norm.eps)
    return scale, norm.bias - mean * scale


def _statistics(z: Tensor) -> Statistics:
    "Mean and variance of each channel of `(…, C)`"
    z = z.flatten(0, -2)
    mean = z.mean(0)
    return mean, (z - mean).square_().mean(0)


def _grid_statistics(support: Tensor, query: Tensor) -> Statistics:
    """`_statistics` of every prototype + every query, from `(H, W, n_way, C)` and `(H, W, n_query, C)`.

    Over a full grid the deviations of prototypes, of queries and of positions are orthogonal, so their variances add up.
    """
    at_position = support.mean(2, keepdim=True), query.mean(2, keepdim=True)
    mean, var = _statistics(at_position[0] + at_position[1])
    for part, centre in zip((support, query), at_position, strict=True): var = var + (part - centre).square_().mean((0, 1, 2))
    return mean, var


def _pooled(pool: KeepingPool, at: Callable[[int, int], Tensor], like: Tensor) -> Tensor:
    """Max-pool of maps of the sides of `like` `(H, W, …)`, `(n, C)` `at` each position, to `(H', W', n, C)`.

    Window by window: what is small stays in the processor's cache.
    """
    height, width = like.shape[:2]
    ceil_mode = pool.ceil_mode or min(height, width) < 2
    rows, columns = _windows(height, ceil_mode), _windows(width, ceil_mode)
    return torch.stack([torch.stack([_largest(at(i, j) for i in row for j in column) for column in columns]) for row in rows])


def _windows(side: int, ceil_mode: bool) -> list[range]:
    "The positions that each output of a max-pool by 2 looks at"
    return [range(start, min(start + 2, side)) for start in range(0, side if ceil_mode else side - 1, 2)]


def _largest(maps: Iterable[Tensor]) -> Any: return reduce(torch.maximum, maps)
