"""The context in which a network runs unmodified while each of its operations gets a backward pass that carries relevance.

A `TorchFunctionMode` sees every operation, also functional ones such as residual sums and concatenations, so no module is edited,
hooked or copied. The handler of an operation (`register_op`) says how relevance passes through it by one of these verbs, each of
which returns the result of the operation:

| verb | the relevance of the result | for example |
|---|---|---|
| `mode.move(func, args, kwargs)` | goes where the values came from: plain autograd | reshape, concatenation, ReLU |
| `mode.mix(func, args, kwargs, eps)` | is shared in proportion to the contributions x·∂y/∂x | sums, pools, products |
| `mode.share(x, y, weights, dim)` | is shared by constant weights | logsumexp |
| `mode.pass_on(x, y)` | goes to x unchanged, element by element | activations, 1/x |
| `mode.layer(x, layer, bias)` | is shared by the rule that the composite has for the layer | linear layers, convolutions |
| `mode.affine(x, y, scale, shift)` | passes a norm, which may count as one with the layer before it | batch norm |
| `mode.again(func, *args)` | goes through the operations that this one consists of | attention |
"""
from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from .composite import Composite
from .flow import from_relevance, layer_rule, scaled, to_relevance
from .layer_ops import FUNCTION_CLASS
from .memory import RESHAPES, Memory, carries, is_in_place, out_of_place
from .ops import HANDLERS, KEEP_SIGNS, NEVER_NEGATIVE
from .rules import Layer, Rule, divide
from .settings import Settings

__all__ = ['RelevanceMode']


class RelevanceMode(TorchFunctionMode):
    """Inside this context every operation on a traced input gets a backward pass that carries relevance.

    The graph that it leaves must not refer to it: Python's garbage collector does not see autograd's nodes, so a cycle through
    them would never be freed.
    """
    def __init__(self,
        settings: Settings, # Settings of the propagation
        model: nn.Module | None = None, # The model, whose layers the composite knows by name and class
        ledger: list | None = None, # A list that collects the relevance of the output and input of each layer
    ):
        super().__init__()
        self.settings, self.eps, self.ledger = settings, settings.eps, ledger
        self.seen = SimpleNamespace(n_layers=0) # so far, and once all have run
        modules = model.named_modules() if model is not None else ()
        self.owners = {id(p): (name, m) for name, m in modules for p in m._parameters.values() if p is not None}
        self.owner: tuple[str, nn.Module] | None = None
        self.op = '' # Name of the operation that runs, whose parameters are the owner's
        self.memory = Memory()
        self.ran: list[tuple[str, type | None]] = [] # Name and class of every layer, in the order in which they ran

    def layers(self) -> list[tuple[str, type | None]]:
        "Name and class of every layer that ran, then of the other layers of the model"
        others = {name: type(m) for name, m in self.owners.values() if any(p.ndim > 1 for p in m.parameters(recurse=False))}
        return [*self.ran, *((name, kind) for name, kind in others.items() if name not in dict(self.ran))]

    @property
    def g_form(self) -> bool:
        "Does the backward pass carry g, where R = x·g, instead of relevance itself?"
        return self.settings.form == 'g'

    # What tensors are

    carries = staticmethod(carries)

    @staticmethod
    def is_gate(t: Any) -> bool:
        "Is `t` a constant in products?"
        return getattr(t, '_is_gate', False)

    def as_gate(self, t: Tensor) -> Tensor:
        "`t`, marked as a constant in products"
        t._is_gate = True  # type: ignore[attr-defined]
        return t

    def mark_input(self, x: Tensor, leaf: Tensor) -> None:
        "Relevance flows from here to `leaf`, an input of the network"
        x._carries_relevance = True  # type: ignore[attr-defined]
        x._leaf = leaf  # type: ignore[attr-defined]

    def constant(self, args: Any) -> Any:
        "`args` with every tensor detached"
        return tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, args)

    # Verbs

    def move(self,
        func: Callable, # The operation
        args: Any, # Its arguments
        kwargs: Any, # Its keyword arguments
    ) -> Any:
        "Relevance goes where the values came from, as a gradient does; values keep their precision"
        out = func(*args, **kwargs)
        low = isinstance(out, Tensor) and out.is_floating_point() and out.element_size() < 4
        return args[0].to(out.device, copy=True) if low else out

    def mix(self,
        func: Callable, # The operation
        args: Any, # Its arguments
        kwargs: Any, # Its keyword arguments
        eps: float = 0., # Stabiliser ε
    ) -> Any:
        "Inputs share the relevance in proportion to their contributions to the output: x·∂y/∂x · R/y"
        if self.g_form: return func(*args, **kwargs)
        into = lambda t: to_relevance(t) if _has_flow(t) else t
        out = func(*tree_map(into, args), **tree_map(into, kwargs))
        return tree_map(lambda y: from_relevance(y, eps) if _has_flow(y) else y, out)

    def share(self,
        x: Tensor, # Where the relevance goes
        y: Tensor, # The value, with as many dimensions as x
        weights: Tensor, # Constant shares, in the shape of x
        dim: int | tuple[int, ...], # Dimensions of x that y has reduced to 1
    ) -> Tensor:
        "Inputs share the relevance by constant weights"
        factor = divide(weights, x.detach()) if self.g_form else weights
        return scaled((x * factor).sum(dim, keepdim=True), y, y.detach() if self.g_form else None)

    def pass_on(self,
        x: Tensor, # Where the relevance goes
        y: Tensor, # The value, in the shape of x
        k: Tensor | None = None, # Share of the relevance that x gets, in its shape; None: all
    ) -> Tensor:
        "An elementwise operation: y gets its relevance from x alone"
        return scaled(x, y, divide(y, x.detach()) if self.g_form else k)

    def layer(self,
        x: Tensor, # Where the relevance of the layer's input goes
        layer: Layer, # The run
        bias: Tensor | None, # Added to the output; gets no relevance
        out_dim: int = 0, # Dimension of the weight that belongs to the outputs
    ) -> Tensor:
        "The output of a layer; the composite chooses its rule after all layers have run"
        name, module = self.owner or (self.op, None)
        layer.name, layer.kind = name, type(module) if module is not None else FUNCTION_CLASS.get(self.op)
        layer.signed = not getattr(x, '_never_negative', False)
        layer.position, self.seen.n_layers = self.seen.n_layers, self.seen.n_layers + 1
        self.ran.append((name, layer.kind))
        y, linear = layer.z, layer.weight.ndim == 2
        if bias is not None: y = y + (bias if linear else bias.reshape(-1, *[1]*(y.ndim - 2)))
        out = self._with_rule(x, y, layer)
        # behind a linear layer of more dimensions a norm runs over another one than the layer's output
        if not linear or x.ndim == 2: out._layer = (x, layer, bias, out_dim)  # type: ignore[attr-defined]
        return out

    def again(self,
        func: Callable, # A composition of operations
        *args: Any, # Its arguments
    ) -> Any:
        "Run the operations that an operation consists of, each with its own handler"
        of_operation = self.owner, self.op
        for t in args:
            if _has_flow(t): t._carries_relevance = True
        with self: out = func(*args)
        self.owner, self.op = of_operation
        return out

    def end(self, out: Tensor) -> Tensor:
        "The output of the network, in a form that receives relevance"
        out = self.memory.latest(out)
        if not self.g_form or not self.carries(out): return out
        if not hasattr(out, '_layer'): return from_relevance(out)
        x, layer, *_ = out._layer
        return self._with_rule(x, out, layer, g_out=False)

    def _with_rule(self, x: Tensor, y: Tensor, layer: Layer, g_out: bool | None = None) -> Tensor:
        rule = partial(_chosen, self.settings.composite, layer, self.seen)
        leaf = getattr(x, '_leaf', None)
        return layer_rule(x if leaf is None else leaf, y, layer, rule, self.g_form and leaf is None,
                          self.g_form if g_out is None else g_out, self.ledger)

    def affine(self,
        x: Tensor, # Where the relevance goes
        y: Tensor, # The value, scale·x + shift
        scale: Tensor, # Broadcasts to x
        shift: Tensor | None, # None: not a constant of the channel, so that it cannot be folded
    ) -> Tensor:
        "The output of a norm, which may count as one with the layer before it (see `Settings`)"
        behind = getattr(x, '_layer', None)
        if behind is not None and (self.settings.norm == 'identity' or shift is not None):
            source, layer, bias, out_dim = behind
            return self._with_rule(source, y, self._folded(layer, bias, scale, shift, out_dim))
        if self.settings.norm == 'identity': return scaled(x, y, divide(y, x.detach(), self.eps) if self.g_form else None)
        return scaled(x, y, scale if self.g_form else divide(scale * x.detach(), y, self.eps))

    def _folded(self, layer: Layer, bias: Tensor | None, scale: Tensor, shift: Tensor | None, out_dim: int) -> Layer:
        "The layer and the batch norm behind it as one layer"
        if self.settings.norm == 'identity': return layer
        k = scale if self.settings.norm == 'fold' else scale.sign()
        shape = [1]*layer.weight.ndim
        shape[out_dim] = -1
        b = shift if bias is None or shift is None else shift + scale * bias.reshape(scale.shape)
        return replace(layer, z=layer.z * k, weight=layer.weight * k.reshape(shape),
                       bias=b if self.settings.norm == 'fold' else None)

    # The dispatch

    def __torch_function__(self, func, types, args=(), kwargs=None):
        args, kwargs = _operands_first(args, dict(kwargs or {}))
        flat = tree_flatten((args, kwargs))[0]
        self.owner = next((self.owners[id(t)] for t in flat if id(t) in self.owners), None)
        self.op = func.__name__.strip('_')
        result = kwargs.pop('out', None)
        now, kwargs_now = tree_map(self._current, args), tree_map(self._current, kwargs)
        if isinstance(result, Tensor): return self.memory.overwrite(result, self._run(func, now, kwargs_now))
        if not is_in_place(func.__name__, kwargs): return self._run(func, now, kwargs_now)
        out = self._out_of_place(func, now, kwargs_now)
        return self.memory.reshape(args[0], out) if self.op in RESHAPES else self.memory.overwrite(args[0], out)

    def _current(self, t: Any) -> Any:
        "A tensor as this run sees it: overwritten ones replaced, those from outside cut off and in full precision"
        if not isinstance(t, Tensor): return t
        t = self.memory.latest(t)
        if carries(t): return t
        if t.requires_grad: t = t.detach()
        return t.float() if t.dtype in (torch.half, torch.bfloat16) else t

    def _run(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        operands = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        flat = [t for t in operands if carries(t)]
        if not flat: return func(*args, **kwargs)
        handler = HANDLERS.get(self.op)
        out = handler(self, func, args, kwargs) if handler else self._unknown(func, args, kwargs)
        gate = all(self.is_gate(t) for t in flat) and self.op not in FUNCTION_CLASS
        never_negative = self.op in NEVER_NEGATIVE or self.op in KEEP_SIGNS and all(map(_is_never_negative, operands))
        for t in tree_flatten(out)[0]:
            if isinstance(t, Tensor) and t.requires_grad:
                t._carries_relevance, t._never_negative = True, never_negative  # type: ignore[attr-defined]
                if gate: self.as_gate(t)
        return out

    def _out_of_place(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        "What an in-place operation would write"
        if 'inplace' in kwargs: return self._run(func, args, kwargs | {'inplace': False})
        other = out_of_place(func)
        if other is not None and any(carries(t) for t in tree_flatten((args, kwargs))[0]): return self._run(other, args, kwargs)
        # constants, and what has an in-place form alone: `y[i] = x`, `copy_`, `zero_`, which move values
        copy = args[0].clone()
        func(copy, *args[1:], **kwargs)
        copy._carries_relevance = copy.requires_grad  # type: ignore[attr-defined]
        return copy

    def _unknown(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        if self.owner is not None:  # a layer with weights of its own: whether they are to share relevance, nobody has said
            name, module = self.owner
            raise NotImplementedError(
                f'no relevance rule for {self.op!r} of layer {name!r} ({type(module).__name__}): write one and register it '
                f"with `@register_op({self.op!r})` (fsc_fastai.explain.ops)")
        out = func(*args, **kwargs)
        if not any(_has_flow(t) for t in tree_flatten(out)[0]): return out
        if self.op not in _WARNED:
            _WARNED.add(self.op)
            warnings.warn(f'relevance through the unknown operation {self.op!r} follows its gradient; register another way '
                          f"with `@register_op({self.op!r})` (fsc_fastai.explain.ops)", stacklevel=4)
        return out if self.g_form else self.mix(func, args, kwargs, self.eps)


def _is_never_negative(t: Tensor) -> bool: return getattr(t, '_never_negative', False)


_WARNED: set[str] = set()
# Names that torch knows for the operands of its operations, NumPy's among them, and for their dimensions
_OPERANDS = ('input', 'self', 'x', 'a', 'x1'), ('other', 'x2', 'b', 'mat2', 'vec', 'vec2', 'tensor', 'exponent')
_DIMS = dict(axis='dim', keepdims='keepdim')


def _operands_first(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    "Operands that were given by name in the places where handlers expect them"
    kwargs = {_DIMS.get(k, k): v for k, v in kwargs.items()}
    if 'condition' in kwargs: return args, kwargs # of `torch.where`, whose first argument it is
    for i, names in enumerate(_OPERANDS):
        if i and any(name in kwargs for name in ('mat1', 'mat', 'vec1')): break # of a sum with a product, which has three
        name = next((name for name in names if name in kwargs), None)
        if name is not None and len(args) == i: args = (*args, kwargs.pop(name))
    return args, kwargs


def _chosen(composite: Composite, layer: Layer, seen: SimpleNamespace) -> Rule:
    "The rule that the composite has for a layer, now that all of them have been seen"
    found = composite(layer, seen.n_layers)
    if found is None:  # the composite is the user's, who left this layer out: a rule of ours would look like theirs
        raise NotImplementedError(f'no relevance rule for layer {layer.name!r} ({layer.kind}): add one, as in '
                                  f'LRP(composite={{{layer.name!r}: Epsilon()}})')
    return found


def _has_flow(t: Any) -> bool: return isinstance(t, Tensor) and t.requires_grad
