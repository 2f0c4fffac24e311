"""A graph network where each graph is a known support set and one query, and statistics are fixed: the least work for its scores.

Every pair of nodes and every node then pass by themselves, and only the score of the query is wanted. What concerns support
samples alone is computed once: their edges in the first layer, and later what the first convolution makes of the differences
in what they had from the beginning. For each query remain its own pairs, and, in the layers between the first and the last,
what appended features add to the other pairs. Batch norms become part of the linear functions before them, and as the sum over
neighbours is linear too, it follows the layer that takes it, whose output is smaller. Nothing here has gradients.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..as_built import as_built

if TYPE_CHECKING:
    from .graph import GraphLayer, GraphNet

__all__ = ['QuickGraph']

# Pairs that pass through the convolutions of an adjacency at once; on a CPU what they become there stays in its cache
PAIRS, PAIRS_ON_CPU = 1 << 16, 1200

Linear = tuple[Tensor, Tensor]


class QuickGraph:
    """A graph network in eval mode, beside a support set: `classify` gives the scores of queries, each in a graph of its own.

    Its weights, fixed statistics and support are read when it is made; it computes where these are, in their precision.
    """
    @torch.no_grad()
    def __init__(self,
        net: GraphNet, # All of whose batch norms have fixed statistics
        support: Tensor, # Nodes `(n_support, n_in)`, with their labels
    ):
        self.net, self.support = net, support
        n = len(support)
        self.pairs = torch.triu_indices(n, n, 1, device=support.device)
        self.place = _places(self.pairs, n)
        *self.hidden, self.last = [_Layer(layer, support) for layer in (*net.layers, net.last)]
        differences = (support[self.pairs[0]] - support[self.pairs[1]]).abs()
        for layer in self.hidden: layer.known_pairs = F.linear(differences, *layer.first)
        if self.hidden:
            layer = self.hidden[0]
            self.first_edges = layer.edges(layer.known_pairs, differences[None, :, :0])

    def serves(self, nodes: Tensor) -> bool:
        "Whether it is the way for these nodes: no gradients, training or mixed precision, no export of a graph; net as built"
        differs = torch.is_autocast_enabled(nodes.device.type) or self.net.training or torch.compiler.is_exporting()
        return not differs and not (torch.is_grad_enabled() and nodes.requires_grad) and as_built(self.net, type(self.net))

    @torch.no_grad()
    def classify(self,
        query: Tensor, # Nodes `(n_query, n_in)`
    ) -> Tensor:
        "Scores `(n_query, n_out)`"
        differences = (query[:, None] - self.support).abs()
        appended = query.new_empty(len(query), len(self.support) + 1, 0)
        for layer in self.hidden:
            own = layer.edges(F.linear(differences, *layer.first), _to_query(appended))
            among = self._among_support(layer, appended)
            edges = torch.cat([among, own, own.new_full((len(own), 1), float('-inf'))], 1)
            to_self, to_others = layer.gathered(query, appended)
            new = torch.baddbmm(to_self, edges[:, self.place].softmax(2), to_others)
            appended = torch.cat([appended, F.leaky_relu_(new)], 2)
        own = self.last.edges(F.linear(differences, *self.last.first), _to_query(appended))
        to_self, to_others = self.last.gathered(query, appended)
        return to_self[:, -1] + (own.softmax(1)[:, None] @ to_others[:, :-1])[:, 0]

    def _among_support(self, layer: _Layer, appended: Tensor) -> Tensor:
        "Edges between support samples `(n_query, n_pairs)`"
        if layer is self.hidden[0]: return self.first_edges.expand(len(appended), -1)
        limit = PAIRS_ON_CPU if appended.is_cpu else PAIRS
        n_graphs = max(1, limit // max(1, self.pairs.shape[1]))
        blocks = list(zip(self.pairs.split(limit, 1), layer.known_pairs.split(limit), strict=True))
        return torch.cat([torch.cat([layer.edges(known, (x.index_select(1, i) - x.index_select(1, j)).abs_())
                                     for (i, j), known in blocks], 1) for x in appended.split(n_graphs)])


class _Layer:
    "The weights of a graph layer with its batch norms, those for the nodes as they were apart from those for what was appended"
    known_pairs: Tensor # What the first convolution makes of pairs of support nodes as they were `(n_pairs, 2·width)`

    def __init__(self, layer: GraphLayer, support: Tensor):
        hidden, last = layer.adjacency.hidden, layer.adjacency.last
        (weight, bias), *others = [_normed(conv, norm) for conv, norm in zip(hidden[::3], hidden[1::3])]
        n_in = support.shape[1]
        self.first, self.first_appended = (weight[:, :n_in], bias), weight[:, n_in:]
        self.others = [*others, (last.weight.flatten(1), last.bias)]
        weight, bias = _normed(layer.fc, layer.norm)
        # nodes as they are meet the first half, sums over neighbours the second; the bias is needed once
        weight, bias = torch.cat(weight.chunk(2, 1)), torch.cat([bias, torch.zeros_like(bias)])
        self.fc, self.fc_appended = (weight[:, :n_in], bias), weight[:, n_in:]
        self.of_support = F.linear(support, *self.fc)

    def edges(self,
        known: Tensor, # What the first convolution makes of the nodes as they were `(n_pairs, 2·width)`, of each graph or of all
        appended: Tensor, # Differences of what was appended `(n_graphs, n_pairs, n)`
    ) -> Tensor:
        "Edge weights before the softmax `(n_graphs, n_pairs)`"
        z = F.linear(appended, self.first_appended).add_(known)
        for weight, bias in self.others: z = F.linear(F.leaky_relu_(z), weight, bias)
        return z[..., 0]

    def gathered(self, query: Tensor, appended: Tensor) -> tuple[Tensor, ...]:
        "What the layer makes of each node for itself and for its neighbours, twice `(n_graphs, n_nodes, n_out)`"
        n = len(query)
        known = torch.cat([self.of_support.expand(n, -1, -1), F.linear(query, *self.fc)[:, None]], 1)
        return (F.linear(appended, self.fc_appended) + known).chunk(2, 2)


def _normed(linear: Any, norm: Any) -> Linear:
    "A linear function on rows and the batch norm after it, if there is one, as one: weight `(n_out, n_in)` and bias"
    weight, bias = linear.weight.flatten(1), linear.bias
    if not hasattr(norm, 'running_var'): return weight, bias
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return weight * scale[:, None], (bias - norm.running_mean) * scale + norm.bias


def _places(pairs: Tensor, n: int) -> Tensor:
    "Where each edge of a graph is in the list of support pairs, pairs with the query, and what stands for a node with itself"
    n_pairs = pairs.shape[1]
    place = torch.full((n + 1, n + 1), n_pairs + n, device=pairs.device)
    i, j = pairs
    place[i, j] = place[j, i] = torch.arange(n_pairs, device=pairs.device)
    place[-1, :-1] = place[:-1, -1] = torch.arange(n_pairs, n_pairs + n, device=pairs.device)
    return place


def _to_query(x: Tensor) -> Tensor:
    "Differences of support nodes from the query, the last node"
    return (x[:, :-1] - x[:, -1:]).abs()
