"Methods as they are deployed: each query by itself, against a support set whose statistics are fixed"
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..as_built import as_built
from ..methods import CrossAttentionNet, FewShotModel, GNNNet, MatchingNet, ProtoNet, RelationNet
from ..methods.base import class_means
from ..methods.graph import EdgeNorm, GraphNodes
from ..methods.graph_quick import QuickGraph
from ..methods.relation_quick import QuickRelation
from ..tensors import pool_vectors

__all__ = ['DeployedHead', 'deployed_head', 'free_norms']

# Pairs, and edges of graphs, that are classified at once: what bounds the memory
PAIRS = 1024
EDGES = 1 << 16


def free_norms(model: nn.Module) -> dict[str, Any]:
    "The batch norms of a model that keep no running statistics, by name: as published they use those of the batch"
    return {name: m for name, m in model.named_modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and not m.track_running_stats}


@contextmanager
def _statistics_of(norms: dict[str, Any]) -> Iterator[None]:
    "Fixes the statistics of `norms` to those of what passes through them here, where they use these already"
    def remember(norm, args):
        if isinstance(norm, EdgeNorm): seen[norm] = norm.statistics(*args)
        else: seen[norm] = torch.var_mean(args[0].transpose(0, 1).flatten(1), 1, correction=0)[::-1]
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    for norm in norms.values(): norm.running_mean = norm.running_var = None
    hooks = [norm.register_forward_pre_hook(remember) for norm in norms.values()]
    try: yield
    finally:
        for hook in hooks: hook.remove()
    for norm, (mean, var) in seen.items(): norm.running_mean, norm.running_var = mean, var


def _spread(n: int, limit: int) -> Tensor:
    "At most `limit` of n positions, evenly spaced"
    return torch.arange(n) if n <= limit else torch.linspace(0, n - 1, limit).round().long()


class DeployedHead(nn.Module):
    """A method with its support set: feature maps `(n_query, C, H, W)` to scores `(n_query, n_way)`, each query by itself.

    `fit` keeps what scoring needs of the support set, and fixes the statistics of batch norms that would otherwise be those of
    the queries at hand, by a rehearsal in which support samples stand for queries. In general all support features are kept.
    Whatever else is computed of them in advance follows the head to another device or precision.
    """
    model: Any # A `FewShotModel` with what its method adds
    support: Tensor
    member: Tensor

    def __init__(self, model: FewShotModel): # In eval mode, for this head alone: `fit` sets statistics in it
        super().__init__()
        self.model = model
        for name in ('support', 'member'): self.register_buffer(name, torch.empty(0), persistent=False)

    def problem(self, n_way: int) -> str | None:
        "Why so many classes can not be told apart, or None"
        return f'two classes at least are needed, found {n_way}' if n_way < 2 else None

    @torch.no_grad()
    def fit(self,
        f_support: Tensor, # Feature maps `(n_support, C, H, W)`, or what `compact` made of them
        member: Tensor, # One-hot labels `(n_support, n_way)`
    ) -> DeployedHead:
        "Fix the support set"
        self.support, self.member = self.condensed(f_support, member)
        norms = free_norms(self.model)
        if norms:
            with _statistics_of(norms): self.rehearse(f_support, member)
        self.prepare()
        return self

    def prepare(self) -> None:
        "Compute in advance what scoring needs of what `fit` fixed"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DeployedHead:
        "Move or cast, by PyTorch's common way of doing so; what was prepared is prepared again from what moved"
        super()._apply(fn, recurse)
        if len(self.member): self.prepare()
        return self

    def compact(self, f: Tensor) -> Tensor:
        "The smallest form of support feature maps from which `fit` can start"
        return f

    def condensed(self, f_support: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        "What is kept of the support set, and its labels"
        return f_support, member

    def rehearse(self, f_support: Tensor, member: Tensor) -> None:
        "Classify support samples as if they were queries"
        self.scores(f_support[_spread(len(f_support), PAIRS)])

    def scores(self, f_query: Tensor) -> Tensor:
        "Scores of some queries"
        return self.model.forward_head(self.support, self.member, f_query)

    def chunk(self) -> int:
        "Queries to score at once"
        return max(1, PAIRS // len(self.member))

    def forward(self, f_query: Tensor) -> Tensor:
        "Scores `(n_query, n_way)` of any number of queries"
        return torch.cat([self.scores(f) for f in f_query.split(self.chunk())])


class PrototypeHead(DeployedHead):
    "Methods that compare with class means: these are kept, in the place of the samples"
    def compact(self, f: Tensor) -> Tensor:
        return pool_vectors(f, self.model.pool) if isinstance(self.model, ProtoNet) else f

    def condensed(self, f_support: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        labels = torch.eye(member.shape[1], dtype=member.dtype, device=member.device)
        return class_means(self.compact(f_support), member), labels


class RelationHead(PrototypeHead):
    """A relation network, whose batch norms get the statistics of support samples paired with every prototype.

    A sample meets the prototype of its class without itself, as a query would; alone in its class, it meets itself.
    On a CPU what concerns the prototypes alone is computed in advance.
    """
    quick: QuickRelation | None
    ready_support: Tensor

    def prepare(self) -> None:
        quick = self.model.quick()
        self.quick = quick if quick is not None and quick.serves(self.support) else None
        if self.quick is not None: self.ready_support = self.quick.as_support(self.support)

    def forward(self, f_query: Tensor) -> Tensor:
        "Scores `(n_query, n_way)` of any number of queries"
        quick = self.quick
        if quick is None or not quick.serves(f_query): return super().forward(f_query)
        return torch.cat([quick.classify(self.ready_support, quick.as_query(f)) for f in f_query.split(self.chunk())])

    def rehearse(self, f_support: Tensor, member: Tensor) -> None:
        n_way = member.shape[1]
        chosen = _spread(len(f_support) * n_way, PAIRS).to(member.device)
        sample, way = chosen // n_way, chosen % n_way
        f, own = f_support[sample], member[sample, way].view(-1, 1, 1, 1)
        shots = member.sum(0)[way].view(-1, 1, 1, 1)
        without = own * (shots > 1)
        prototypes = (self.support[way] * shots - without * f) / (shots - without)
        self.model.classify(torch.cat([prototypes, f], 1)[:, None])


class VectorHead(DeployedHead):
    "Methods that compare with every support sample, as a vector"
    def compact(self, f: Tensor) -> Tensor: return pool_vectors(f, self.model.pool)
    def condensed(self, f_support: Tensor, member: Tensor) -> tuple[Tensor, Tensor]: return self.compact(f_support), member


class GraphHead(VectorHead):
    """A graph network with a graph for each query; support samples take turns as the query for the statistics.

    A graph grows with the square of its nodes: of a class with more than `max_shot` samples, means of some stand for them.
    What concerns support samples alone is computed in advance.
    """
    max_shot = 10
    quick: QuickGraph | None

    def problem(self, n_way: int) -> str | None:
        known = self.model.n_way
        return None if n_way == known else (
            f'this GNNNet tells {known} classes apart, found {n_way}: its label width is fixed by training. '
            f'Train with n_way={n_way}, or use a method without this limit (RelationNet, ProtoNet)')

    def condensed(self, f_support: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        f = self.compact(f_support)
        groups = [group for label in range(member.shape[1]) for group in self._groups(f[member[:, label] > 0])]
        shots = [min(self.max_shot, int(n)) for n in member.sum(0).tolist()]
        labels = torch.eye(member.shape[1], dtype=member.dtype, device=member.device)
        return torch.stack(groups), labels.repeat_interleave(torch.tensor(shots, device=member.device), 0)

    def _groups(self, f: Tensor) -> list[Tensor]:
        return [part.mean(0) for part in f.tensor_split(min(self.max_shot, len(f)))]

    def rehearse(self, f_support: Tensor, member: Tensor) -> None:
        z = self.model.fc(self.support)
        n = len(z)
        turns = _spread(n, max(1, EDGES // n**2))
        order = torch.stack([torch.cat([torch.arange(i), torch.arange(i + 1, n), torch.tensor([i])]) for i in turns.tolist()])
        labels = self.member[order]
        labels[:, -1] = 0
        self.model.classify(GraphNodes(z[order], labels, len(turns)))

    @torch.no_grad()
    def prepare(self) -> None:
        self.quick = self.model.quick(torch.cat([self.model.fc(self.support), self.member], 1))

    def forward(self, f_query: Tensor) -> Tensor:
        "Scores `(n_query, n_way)` of any number of queries"
        quick, n_way = self.quick, self.member.shape[1]
        if quick is None or not quick.serves(f_query): return super().forward(f_query)
        z = F.pad(self.model.fc(self.compact(f_query)), (0, n_way))
        return torch.cat([quick.classify(part) for part in z.split(self.chunk())])

    def scores(self, f_query: Tensor) -> Tensor:
        z, query = self.model.fc(self.support), self.model.fc(self.compact(f_query))
        n = query.shape[0]
        nodes = torch.cat([z.expand(n, -1, -1), query[:, None]], 1)
        labels = F.pad(self.member.expand(n, -1, -1), (0, 0, 0, 1))
        return self.model.classify(GraphNodes(nodes, labels, n))

    def chunk(self) -> int: return max(1, EDGES // (len(self.member) + 1)**2)


class OneQueryHead(DeployedHead):
    "A graph network that makes its graphs in a way of its own, where queries may share one: they are scored one at a time"
    problem = GraphHead.problem
    def chunk(self) -> int: return 1


_heads: dict[type[FewShotModel], type[DeployedHead]] = {
    RelationNet: RelationHead, ProtoNet: PrototypeHead, CrossAttentionNet: PrototypeHead,
    MatchingNet: VectorHead, GNNNet: GraphHead}


def deployed_head(model: FewShotModel) -> DeployedHead:
    "The head for a method, around a copy of the model that leaves the original as it is"
    method = next((t for t in type(model).__mro__ if t in _heads), FewShotModel)
    cls = _heads.get(method, DeployedHead)
    if not as_built(model, method, 'process', 'forward_head'): cls = OneQueryHead if cls is GraphHead else DeployedHead
    return cls(copy.deepcopy(model).eval().requires_grad_(False))
