"GNNNet: a graph network that passes labels from support nodes to query nodes (Garcia and Bruna 2018)"
from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..as_built import as_built, blueprint
from ..encode.encoder import Encoder
from ..tensors import Pool, pool_vectors, vector_size
from .base import FewShotModel, Processed, episode_way, one_hot
from .registry import register_method

__all__ = ['GNNNet', 'GraphNodes', 'GraphNet', 'GraphLayer', 'Adjacency', 'EdgeNorm', 'GraphLayerTrace']


@dataclass
class GraphNodes(Processed):
    """The graphs of one episode. Each holds the whole support set, then up to `n_way` queries.

    Query j is the (j // n_graphs)-th query of graph j % n_graphs: one query per class, if the queries are sorted by class. If
    the queries do not fill all graphs, the first queries fill the gaps, and their scores there are dropped.
    """
    features: Tensor # `(n_graphs, n_nodes, 128)`
    labels: Tensor # One-hot for the support, 0 for queries: `(n_graphs, n_nodes, n_way)`
    n_query: int # Queries of the episode

    @property
    def n_per_graph(self) -> int:
        "Number of query nodes of a graph, which are its last nodes"
        return -(-self.n_query // self.features.shape[0])


class GraphLayerTrace(NamedTuple):
    """The activations of a `GraphLayer`: its output is the normalised `fc(gathered)`, where `gathered` = (x, adjacency @ x).

    Relevance treats the adjacency as a constant and passes through batch norm and leaky ReLU unchanged.
    """
    x: Tensor # Input nodes `(n_graphs, n_nodes, n_in)`
    adjacency: Tensor # `(n_graphs, n_nodes, n_nodes)`, rows sum to 1
    gathered: Tensor # Input of `fc` `(n_graphs, n_nodes, 2·n_in)`: the identity's part, then the adjacency's


class EdgeNorm(nn.BatchNorm2d):
    "Batch norm of rows that may each stand for several equal rows; it has running statistics only where a head sets them"
    def __init__(self,
        num_features: int, # Features of a row, C
    ):
        super().__init__(num_features, track_running_stats=False)

    @staticmethod
    def statistics(
        x: Tensor, # `(..., C)`
        share: Tensor | None, # Weight of each row `(n, 1)`, summing to 1; None: equal weights
    ) -> tuple[Tensor, Tensor]:
        "Mean and variance of the rows, `(C,)` each"
        if share is None:
            var, mean = torch.var_mean(x.flatten(0, -2), 0, correction=0)
            return mean, var
        mean = (share * x).sum(0)
        return mean, (share * (x - mean).square()).sum(0)

    def forward(self, x: Tensor, share: Tensor | None) -> Tensor: # type: ignore[override]
        "Normalise rows `(..., C)`"
        mean: Any = self.running_mean # None unless a deployed head has set it
        var: Any = self.running_var
        if mean is None and share is None:
            return F.batch_norm(x.flatten(0, -2), None, None, self.weight, self.bias, True, eps=self.eps).view_as(x)
        if mean is None: mean, var = self.statistics(x, share)
        return (x - mean) * ((var + self.eps).rsqrt() * self.weight) + self.bias


class Adjacency(nn.Module):
    """Edge weights from the absolute differences of nodes: 1×1 convolutions, then a softmax over the other nodes.

    Because |a − b| = |b − a|, a CPU computes every unordered pair once and counts it twice in the batch norms; one row of zeros
    stands for the difference of every node and itself. This halves the work of the graph network. A GPU computes all pairs,
    which takes fewer operations.
    """
    def __init__(self,
        n_in: int, # Features of a node
        width: int, # Width of the last hidden layers; the first two are twice as wide
    ):
        super().__init__()
        sizes = (n_in, 2 * width, 2 * width, width, width)
        self.hidden = nn.Sequential(*[layer for a, b in pairwise(sizes) for layer in (
            nn.Conv2d(a, b, 1), EdgeNorm(b), nn.LeakyReLU())])
        self.last = nn.Conv2d(width, 1, 1)
        self.blueprint = blueprint(self)

    def forward(self, x: Tensor) -> Tensor:
        "Nodes `(n_graphs, n_nodes, n_in)` to edge weights `(n_graphs, n_nodes, n_nodes)`, with 0 for self-loops"
        # an exported graph does all ordered pairs, for any number of nodes
        all_pairs = torch.compiler.is_exporting() or not x.is_cpu
        weight = self.weights((x[:, :, None] - x[:, None]).abs()) if all_pairs else self._of_pairs(x)
        itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        return weight.masked_fill(itself, float('-inf')).softmax(-1)

    def _of_pairs(self, x: Tensor) -> Tensor:
        "Edge weights before the softmax, by unordered pairs"
        n_graphs, n, _ = x.shape
        i, j = torch.triu_indices(n, n, 1, device=x.device)
        z = torch.cat([(x[:, i] - x[:, j]).abs().flatten(0, 1), x.new_zeros(1, x.shape[2])])
        share = x.new_full((z.shape[0], 1), 2 / (n_graphs * n**2))
        share[-1] = 1 / n
        weight = self.weights(z, share)[:-1].unflatten(0, (n_graphs, -1))
        both_ways = torch.zeros(n, n, dtype=torch.long, device=x.device)
        both_ways[i, j] = both_ways[j, i] = torch.arange(i.shape[0], device=x.device)
        return weight[:, both_ways]

    def weights(self, z: Tensor, share: Tensor | None = None) -> Tensor:
        "Differences `(..., n_in)` to edge weights `(...)`"
        each_row = _each_row if as_built(self, Adjacency) else _each_row_by_module
        for conv, norm, activation in zip(self.hidden[::3], self.hidden[1::3], self.hidden[2::3]):
            z = activation(norm(each_row(conv, z), share))
        return each_row(self.last, z)[..., 0]


def _each_row(conv: Any, x: Tensor) -> Tensor:
    "A 1×1 convolution on rows `(..., n_in)`"
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def _each_row_by_module(conv: Any, x: Tensor) -> Tensor:
    "The same by the module itself, which may have been replaced"
    return conv(x.reshape(-1, x.shape[-1], 1, 1)).flatten(1).unflatten(0, x.shape[:-1])


class GraphLayer(nn.Module):
    "Graph convolution with two operators: the identity and a learned adjacency"
    def __init__(self,
        n_in: int, # Features of a node in
        n_out: int, # Features of a node out
        width: int, # Width of the adjacency's layers
        norm: bool = True, # Ends with a batch norm on batch statistics
    ):
        super().__init__()
        self.adjacency = Adjacency(n_in, width)
        self.fc = nn.Linear(2 * n_in, n_out)
        self.norm = nn.BatchNorm1d(n_out, track_running_stats=False) if norm else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, GraphLayerTrace]:
        "Nodes `(n_graphs, n_nodes, n_in)` to `(n_graphs, n_nodes, n_out)`, and the trace"
        adjacency = self.adjacency(x)
        gathered = torch.cat([x, (adjacency @ x).to(x.dtype)], 2)
        out = self.norm(self.fc(gathered).flatten(0, 1)).unflatten(0, x.shape[:2])
        return out, GraphLayerTrace(x, adjacency, gathered)


class GraphNet(nn.Module):
    "A stack of graph layers that each append their output to the nodes (Garcia and Bruna 2018, section 4)"
    def __init__(self,
        n_in: int, # Features of a node, with its label
        n_out: int, # Scores of a node
        width: int = 96, # Width of the adjacency's layers; hidden layers append half as many features
        n_hidden: int = 2, # Layers before the last one
    ):
        super().__init__()
        self.layers = nn.ModuleList([GraphLayer(n_in + i * (width // 2), width // 2, width) for i in range(n_hidden)])
        self.last = GraphLayer(n_in + n_hidden * (width // 2), n_out, width, norm=False)
        self.blueprint = blueprint(self)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[GraphLayerTrace, ...]]:
        "Nodes `(n_graphs, n_nodes, n_in)` to scores `(n_graphs, n_nodes, n_out)` of every node, and the traces of the layers"
        trace = []
        for layer in self.layers:
            new, seen = layer(x)
            x = torch.cat([x, F.leaky_relu(new)], 2)
            trace.append(seen)
        scores, seen = self.last(x)
        return scores, (*trace, seen)


@register_method('gnn')
class GNNNet(FewShotModel):
    """Graph network (Garcia and Bruna 2018; Table I of Sun et al. 2020): an fc layer, labels appended, then the GNN.

    Scores are `(n_query, n_way)`, for any shot and any number of queries. The way is fixed by training: another one raises
    `ValueError`. As published, batch norms always use the statistics of the episode, so a score depends on the other queries.
    """
    any_way = False
    transductive = False
    queries_apart = False # Queries in the same graph see each other

    def __init__(self,
        encoder: Encoder, # Images to feature maps, with `out_shape`
        n_way: int = 5, # Classes of every episode, in training and after
        n_classes: int = 0, # Ignored: this method has no global classifier
        n_features: int = 128, # Features of a node, without its label
        width: int = 96, # Width of the graph network
        pool: Pool = 'avg', # How maps become vectors: 'avg' or 'flatten'
    ):
        super().__init__(encoder, n_way, n_classes)
        self.pool, self.vector_size = pool, vector_size(encoder.out_shape, pool)
        self.fc = nn.Sequential(nn.Linear(self.vector_size, n_features),
                                nn.BatchNorm1d(n_features, track_running_stats=False))
        self.gnn = GraphNet(n_features + n_way, n_way, width)

    def process(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> GraphNodes:
        "The nodes of as many graphs as all queries need, with up to `n_way` queries each"
        way, n_support, n_query = episode_way(support_y), f_support.shape[0], f_query.shape[0]
        if way != self.n_way:
            raise ValueError(f'This GNNNet classifies {self.n_way}-way episodes, found {way}-way: its label width is fixed by '
                             f'training. Train with n_way={way}, or use a method without this limit (RelationNet, ProtoNet)')
        z = self.fc(torch.cat([pool_vectors(f, self.pool, self.vector_size) for f in (f_support, f_query)]))
        n_graphs = max(1, -(-n_query // way))
        n_per_graph = -(-n_query // n_graphs)
        member = torch.arange(n_graphs * n_per_graph, device=z.device).view(n_per_graph, n_graphs).T % max(1, n_query)
        features = torch.cat([z[:n_support].expand(n_graphs, -1, -1), z[n_support:][member]], 1)
        labels = one_hot(support_y, z.dtype).expand(n_graphs, -1, -1)
        return GraphNodes(features, F.pad(labels, (0, 0, 0, n_per_graph)), n_query)

    def classify_with_trace(self, f_p: GraphNodes) -> tuple[Tensor, tuple[GraphLayerTrace, ...]]:
        "Scores `(n_query, n_way)` as `classify` returns them, and the trace of each graph layer"
        scores, trace = self.gnn(torch.cat([f_p.features, f_p.labels.to(f_p.features.dtype)], 2))
        return scores[:, -f_p.n_per_graph:].transpose(0, 1).flatten(0, 1)[:f_p.n_query], trace

    def explained_scores(self, f_p: GraphNodes) -> Tensor:
        "Scores `(n_graphs, n_nodes, n_way)` of all nodes, also those of the support"
        if not as_built(self, GNNNet, 'classify', 'classify_with_trace'): return self.classify(f_p)
        return self.gnn(torch.cat([f_p.features, f_p.labels.to(f_p.features.dtype)], 2))[0]

    def classify(self, f_p: GraphNodes) -> Tensor:
        "Scores `(n_query, n_way)` of the query nodes"
        return self.classify_with_trace(f_p)[0]
