"""Closed forms of relevance propagation for the classifiers of this library, computed from the trace of the forward pass.

Each gives the same result as the engine, several times faster. `head(cls)` registers such a pass.
"""
from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..as_built import as_built
from ..kernels.small_conv import conv_small, conv_small_input
from ..methods.cross_attention import Attended, CrossAttentionNet
from ..methods.graph import GNNNet, GraphLayer, GraphLayerTrace, GraphNet, GraphNodes
from ..methods.matching import MatchingNet
from ..methods.pairs import LabelledPairs, Pairs, pair_parts
from ..methods.proto import ProtoNet
from ..methods.relation import BlockTrace, RelationModule, RelationNet, sums
from ..tensors import single, unit
from .rules import divide
from .weights import relevance_start

__all__ = ['Head', 'head', 'head_of']

Pass = Callable[[Any, Any, Tensor, Any, float], Tensor | None]


class Head(NamedTuple):
    "The closed form of a classifier, computed from its trace; it runs no module and so changes no buffer"
    relevance: Pass # `(model, f_p, scores, trace, eps)` to the relevance of `f_p.features`, or None if it does not apply
    has_layers: bool # The classifier has layers, whose rules may be chosen
    parts: dict[str, type] # Parts of the model that it replaces besides `classify`, by attribute


_HEADS: dict[type, Head] = {}


def head(
    cls: type, # Class of the model
    has_layers: bool = False, # The classifier has layers, whose rules may be chosen
    **parts: type, # Parts of the model that the pass replaces, by attribute
) -> Callable[[Pass], Pass]:
    "Register a function as the closed form of the classifier of `cls` (see `Head`): a decorator"
    def add(f: Pass) -> Pass:
        _HEADS[cls] = Head(f, has_layers, parts)
        return f
    return add


def head_of(model: nn.Module) -> Head | None:
    "The closed form for exactly this class, if the model is as it was built; subclasses may classify in another way"
    cls = type(model)
    found, steps = _HEADS.get(cls), [step for step in ('classify', 'classify_with_trace') if hasattr(cls, step)]
    return found if found is not None and as_built(model, cls, *steps, **found.parts) else None


def _epsilon(x: Tensor, R: Tensor, weight: Tensor, eps: float) -> Tensor:
    "ε-rule of a linear layer, without bias: equation (4)"
    return x * (divide(R, F.linear(x, weight), eps) @ weight)


def _terms(terms: Tensor, R: Tensor, eps: float) -> Tensor:
    "ε-rule of a sum over the last dimension"
    return terms * divide(R, terms.sum(-1), eps)[..., None]


# RelationNet: fc2, fc1, two convolutions

@head(RelationNet, has_layers=True, relation=RelationModule)
def _relation(model: RelationNet, f_p: Pairs, scores: Tensor, trace: Any, eps: float) -> Tensor | None:
    relation = model.relation
    if not isinstance(f_p, Pairs) or trace.layer2.pooled[0].numel() != trace.flat.shape[1]: return None
    R = relevance_start(scores, eps).view(-1, 1)
    R = _epsilon(single(trace.hidden), R, single(relation.fc2.weight), eps)
    R = _epsilon(single(trace.flat), R, single(relation.fc1.weight), eps)
    R = _unpool(R.view_as(trace.layer2.pooled), trace.layer2)
    R = _alpha_conv(single(trace.layer1.pooled), R, relation.layer2.conv)
    signed = not (f_p.encoded and getattr(model.encoder, 'nonnegative', False))
    return _alpha_conv_of_pairs(f_p, _unpool(R, trace.layer1), relation.layer1.conv, signed).unflatten(0, scores.shape)


def _unpool(R: Tensor, block: BlockTrace) -> Tensor:
    "Through the max-pool to the winners, and through ReLU and batch norm unchanged"
    return F.max_unpool2d(R, block.where, [2, 2], output_size=block.active.shape[-2:])


def _alpha_conv(x: Tensor, R: Tensor, conv: nn.Conv2d) -> Tensor:
    "α = 1 rule of a convolution behind a ReLU: equation (5)"
    positive = single(conv.weight).clamp(min=0)
    s = divide(R, conv_small(x, positive, padding=conv.padding))
    return x * conv_small_input(x.shape, positive, s, conv.padding)


def _alpha_conv_of_pairs(pairs: Pairs, R: Tensor, conv: nn.Conv2d, signed: bool) -> Tensor:
    "α = 1 rule where conv(cat(a, b)) = conv_a(a) + conv_b(b): the denominators are computed on single maps, not on pairs"
    a, b, weight = single(pairs.support), single(pairs.query), single(conv.weight)
    size = torch.Size((len(a) * len(b), weight.shape[1], *a.shape[-2:]))
    def part(**sign: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        "Contributions of the entries of one sign: their sum at each output, and their relevance of its shares"
        x_a, x_b, w = a.clamp(**sign), b.clamp(**sign), weight.clamp(**sign)
        def relevance(s: Tensor) -> Tensor:
            c = conv_small_input(size, w, s, conv.padding).view(len(b), len(a), 2, *a.shape[1:])
            c[:, :, 0].mul_(x_a)
            c[:, :, 1].mul_(x_b[:, None])
            return c.flatten(2, 3).flatten(0, 1)
        return sums(*(conv_small(x, k, padding=conv.padding) for x, k in zip((x_a, x_b), w.chunk(2, 1)))), relevance
    totals, relevances = zip(*([part(min=0), part(max=0)] if signed else [part(min=0)]), strict=True)
    s = divide(R, reduce(add, totals))
    return reduce(add, [relevance(s) for relevance in relevances])


# GNNNet: graph layers, whose inputs are the outputs of all layers before

@head(GNNNet, has_layers=True, gnn=GraphNet)
def _graph(model: GNNNet, f_p: GraphNodes, scores: Tensor, trace: Any, eps: float) -> Tensor:
    layers: list[Any] = [*model.gnn.layers, model.gnn.last]
    last, n_new = layers[-1].fc, layers[0].fc.out_features
    R_new = relevance_start(F.linear(single(trace[-1].gathered), single(last.weight), single(last.bias)), eps)
    R = torch.zeros_like(single(trace[-1].x))
    for layer, seen in zip(reversed(layers), reversed(trace), strict=True):
        R = R[..., :seen.x.shape[2]] + _graph_layer(layer, seen, R_new, eps)
        # the last features of these nodes are the output of the layer before
        R_new = R[..., -n_new:]
    return R[..., :f_p.features.shape[2]]


def _graph_layer(layer: GraphLayer, seen: GraphLayerTrace, R: Tensor, eps: float) -> Tensor:
    "ε-rule for the linear layer and for both operators, the identity and the adjacency, which counts as a constant"
    x, gathered = single(seen.x), single(seen.gathered)
    itself, neighbours = divide(_epsilon(gathered, R, single(layer.fc.weight), eps), gathered, eps).chunk(2, 2)
    return x * (itself + single(seen.adjacency).transpose(1, 2) @ neighbours)


# Similarities

@head(CrossAttentionNet)
def _cross_attention(model: CrossAttentionNet, f_p: Attended, scores: Tensor, trace: Any, eps: float) -> Tensor:
    query, support = single(f_p.query), single(f_p.support)
    total = query.sum((-2, -1))
    terms = unit(total) * unit(support.mean((-2, -1)))
    R = _terms(terms, relevance_start(scores, eps), eps)
    return query * divide(R, total, eps)[..., None, None]


@head(ProtoNet)
def _proto(model: ProtoNet, f_p: Pairs | Tensor, scores: Tensor, trace: Any, eps: float) -> Tensor | None:
    if model.bias: return None  # which takes a share of the relevance
    support, query = (single(part) for part in pair_parts(f_p))
    terms = unit(query) * unit(support) if model.distance == 'cosine' else _nearer(query, support)
    return _of_both(_terms(terms, relevance_start(scores, eps), eps))


def _nearer(query: Tensor, support: Tensor) -> Tensor:
    """How much each dimension says that class c is nearer than the others: Σ_k≠c π_k [(q_i − p_ki)² − (q_i − p_ci)²].

    π is the softmax of the negative distances of the other classes, so that the sum is log(P_c / (1 − P_c)) but for its
    entropy. Terms have both signs, which those of a single distance have not (Kauffmann et al. 2020, on k-means).
    """
    squares = (query - support).square()
    itself = torch.eye(squares.shape[1], dtype=torch.bool, device=squares.device)
    others = (-squares.sum(-1))[:, None].expand(-1, len(itself), -1).masked_fill(itself, float('-inf')).softmax(-1)
    return others @ squares - squares


@head(MatchingNet)
def _matching(model: MatchingNet, f_p: LabelledPairs, scores: Tensor, trace: Any, eps: float) -> Tensor:
    terms = unit(f_p.query) * unit(f_p.support)
    attention = (model.scale * terms.sum(-1)).softmax(1)
    labels = f_p.labels.to(terms.dtype)
    share = divide(relevance_start(scores, eps), attention @ labels) @ labels.T
    return _of_both(_terms(terms, attention * share, eps))


def _of_both(R: Tensor) -> Tensor:
    "The relevance of a product or a difference, half for the support's side and half for the query's"
    return torch.cat([R, R], -1) / 2
