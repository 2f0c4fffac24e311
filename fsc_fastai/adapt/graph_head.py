"The head of GNNNet for a fixed support, where each query has a graph of its own"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..as_built import as_built
from ..methods.graph import Adjacency, GNNNet, GraphNet, GraphNodes
from ..methods.head import head_for, spread
from .head import VectorHead

__all__ = ['GraphHead']

EDGES = 1 << 16 # Edges of graphs that are classified at once, which limits the memory
GRAPHS = 16 # Graphs at once on a CPU, which fit into its cache


@head_for(GNNNet)
class GraphHead(VectorHead):
    """The head of a graph network with one graph per query; each support sample is the query once to fix the statistics.

    Because a graph grows with the square of its nodes, a class with more than `max_shot` samples is reduced to group means.
    """
    max_shot = 10
    together = False # The edges of an episode's graphs fill the cores of a CPU by themselves

    def condensed(self, f_support: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        "Vectors of samples, or means of groups of samples, class by class"
        f = self.compact(f_support)
        groups = [group for label in range(member.shape[1]) for group in self._groups(f[member[:, label] > 0])]
        shots = [min(self.max_shot, int(n)) for n in member.sum(0).tolist()]
        labels = torch.eye(member.shape[1], dtype=member.dtype, device=member.device)
        return torch.stack(groups), labels.repeat_interleave(torch.tensor(shots, device=member.device), 0)

    def _groups(self, f: Tensor) -> list[Tensor]:
        return [part.mean(0) for part in f.tensor_split(min(self.max_shot, len(f)))]

    def rehearse(self, f_support: Tensor, member: Tensor) -> None:
        "Classify each support sample in a graph with all others"
        z = self.model.fc(self.support)
        n = len(z)
        turns = spread(n, max(1, EDGES // n**2))
        order = torch.stack([torch.cat([torch.arange(i), torch.arange(i + 1, n), torch.tensor([i])]) for i in turns.tolist()])
        labels = self.member[order]
        labels[:, -1] = 0
        self.model.classify(GraphNodes(z[order], labels, len(turns)))

    def chunk(self) -> int:
        "Number of queries to score at once, by the edges of their graphs"
        return max(1, EDGES // (len(self.member) + 1)**2)

    def scores(self, f_query: Tensor) -> Tensor:
        "Scores `(n_query, n_way)` by the steps of the model"
        if not self.fixed: return super().scores(f_query)
        z, query = self.model.fc(self.support), self.model.fc(self.compact(f_query))
        n = query.shape[0]
        nodes = torch.cat([z.expand(n, -1, -1), query[:, None]], 1)
        labels = F.pad(self.member.expand(n, -1, -1), (0, 0, 0, 1))
        return self.model.classify(GraphNodes(nodes, labels, n))

    def forward(self, f_query: Tensor) -> Tensor:
        "Scores `(n_query, n_way)` of any number of queries; edges among support nodes are shared if the network is as built"
        if not self.fixed or not as_built(self.model, GNNNet, 'classify', 'classify_with_trace', gnn=GraphNet):
            return super().forward(f_query)
        support = torch.cat([self.model.fc(self.support), self.member], 1)
        query = F.pad(self.model.fc(self.compact(f_query)), (0, self.member.shape[1]))
        n = min(self.chunk(), GRAPHS) if query.is_cpu else self.chunk()
        edges = _edges_among(self.model.gnn.layers[0].adjacency, support[None]) if len(self.model.gnn.layers) else None
        return torch.cat([self._apart(support, edges, part) for part in query.split(n)])

    def _apart(self, support: Tensor, edges: Tensor | None, query: Tensor) -> Tensor:
        "Scores of query nodes; the first edges among support nodes are the same in each graph, the last only lead to the query"
        net = self.model.gnn
        x = torch.cat([support.expand(len(query), -1, -1), query[:, None]], 1)
        for k, layer in enumerate(net.layers):
            among = edges.expand(len(x), -1) if k == 0 and edges is not None else _edges_among(layer.adjacency, x[:, :-1])
            weight = _adjacency(among, _edges_to_query(layer.adjacency, x))
            new = layer.norm(layer.fc(torch.cat([x, weight @ x], 2)).flatten(0, 1)).unflatten(0, x.shape[:2])
            x = torch.cat([x, F.leaky_relu(new)], 2)
        weight = _edges_to_query(net.last.adjacency, x).softmax(1)[:, None]
        return net.last.fc(torch.cat([x[:, -1], (weight @ x[:, :-1])[:, 0]], 1))


def _edges_among(adjacency: Adjacency, x: Tensor) -> Tensor:
    "Weights between nodes `(n_graphs, n_pairs)` before the softmax, in the order of `torch.triu_indices`"
    i, j = torch.triu_indices(x.shape[1], x.shape[1], 1, device=x.device)
    return adjacency.weights((x[:, i] - x[:, j]).abs())


def _edges_to_query(adjacency: Adjacency, x: Tensor) -> Tensor:
    "Weights between the last node and the others `(n_graphs, n_nodes − 1)` before the softmax"
    return adjacency.weights((x[:, :-1] - x[:, -1:]).abs())


def _adjacency(among: Tensor, to_query: Tensor) -> Tensor:
    "All weights `(n_graphs, n_nodes, n_nodes)` after the softmax, without self-loops"
    n = to_query.shape[1]
    i, j = torch.triu_indices(n, n, 1, device=among.device)
    weight = among.new_full((len(among), n + 1, n + 1), float('-inf'))
    weight[:, i, j] = weight[:, j, i] = among
    weight[:, -1, :-1] = weight[:, :-1, -1] = to_query
    return weight.softmax(-1)
