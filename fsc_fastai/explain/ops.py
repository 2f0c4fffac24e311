"""What the engine does with each operation: the tables, and sums and products, which need more than a table.

Operations are known by name, so that `torch.relu`, `Tensor.relu`, `F.relu` and their in-place forms are one entry.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .flow import scaled
from .rules import divide

__all__ = ['register_op', 'HANDLERS']

Handler = Callable[[Any, Callable, tuple, dict], Any] # Of a `RelevanceMode`, a function of torch and its arguments
HANDLERS: dict[str, Handler] = {}


def register_op(
    *names: str, # As in torch, without underscores at either end: `relu` is `torch.relu`, `F.relu`, `Tensor.relu_` and their like
) -> Callable[[Handler], Handler]:
    """Decorator: `handler(mode, func, args, kwargs)` returns what the operation called one of `names` returns.

    The backward pass of its result must carry relevance: the verbs of `mode` build such results (the table in
    `fsc_fastai.explain.tracing`). Operands are the first of `args`, even where they were given by name. A later registration
    replaces an earlier one.
    """
    def add(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler
    return add


# What only moves values about; ReLU among them, which passes relevance where its input is positive
MOVES = '''relu threshold view reshape flatten unflatten ravel permute transpose t T mT movedim moveaxis swapaxes swapdims
    squeeze unsqueeze expand expand_as broadcast_to broadcast_tensors atleast_1d atleast_2d atleast_3d meshgrid repeat
    repeat_interleave tile cat concat concatenate stack hstack vstack dstack split split_with_sizes tensor_split chunk unbind
    narrow select index_select gather take_along_dim getitem setitem contiguous clone to type type_as float double half
    bfloat16 cpu cuda pad roll flip rot90 unfold pixel_shuffle pixel_unshuffle channel_shuffle view_as reshape_as masked_fill
    where diagonal as_subclass alias get'''
# What shares relevance in proportion to contributions
MIXES = '''sub subtract rsub isub sum nansum interpolate upsample cumsum fold max amax min amin maximum minimum fmax fmin
    median nanmedian kthvalue topk sort msort cummax cummin'''
# The same, whose published form has no stabiliser
POOLS = '''avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d max_pool1d max_pool2d
    max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d lp_pool1d lp_pool2d'''
# Elementwise
PASSES = '''leaky_relu rrelu prelu relu6 elu celu selu gelu silu mish hardswish hardtanh tanh hardshrink softshrink tanhshrink
    softplus softsign logsigmoid clamp clamp_min clamp_max clip square sqrt exp exp2 expm1 log log2 log10 log1p logit abs
    absolute neg negative sign sgn reciprocal erf sin cos tan atan asinh sinh cosh floor ceil round trunc fix frac nan_to_num'''
# Constants where they multiply something
GATES = 'softmax log_softmax sigmoid hardsigmoid softmin sparsemax'
# Always constants
CONSTANTS = 'norm vector_norm matrix_norm var std var_mean std_mean rsqrt detach'
DROPOUTS = '''dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout native_dropout'''
# Whose results are never negative, and those that are not where no operand is
NEVER_NEGATIVE, KEEP_SIGNS = (set(names.split()) for names in (
    'relu relu6 sigmoid hardsigmoid softmax softmin softplus exp exp2 abs absolute square norm var std',
    f'''{POOLS} {DROPOUTS} view reshape flatten unflatten ravel permute transpose movedim squeeze unsqueeze expand expand_as
    broadcast_to repeat repeat_interleave cat concat concatenate stack narrow select index_select gather getitem contiguous clone
    roll flip pixel_shuffle pixel_unshuffle channel_shuffle view_as reshape_as sum mean max amax min amin maximum minimum'''))


@register_op(*MOVES.split())
def _move(mode, func, args, kwargs): return mode.move(func, args, kwargs)


@register_op(*MIXES.split())
def _mix(mode, func, args, kwargs): return mode.mix(func, args, kwargs, mode.eps)


@register_op('add', 'radd', 'iadd')
def _add(mode, func, args, kwargs):
    "A sum; but a mask of 0 and −∞ takes no share"
    first = mode.carries(args[0])
    x, other = args[:2] if first else args[1::-1]
    if mode.g_form or mode.carries(other) or not isinstance(other, Tensor): return mode.mix(func, args, kwargs, mode.eps)
    y, part = func(*mode.constant(args), **kwargs), x.detach() if first else x.detach() * kwargs.get('alpha', 1)
    # not asked on the host, which would wait for the device
    is_mask = ((other == 0) | (other == float('-inf'))).all()
    return mode.pass_on(x.expand_as(y), y, torch.where(is_mask, 1., divide(part, y, mode.eps)))


@register_op(*POOLS.split())
def _pool(mode, func, args, kwargs): return mode.mix(func, args, kwargs)


@register_op('mean')
def _mean(mode, func, args, kwargs):
    "ε on the scale of the sum"
    y = func(args[0].detach(), *args[1:], **kwargs)
    return mode.mix(func, args, kwargs, mode.eps * y.numel() / args[0].numel())


@register_op(*PASSES.split())
def _pass(mode, func, args, kwargs): return _through(mode, args[0], func, args, kwargs)


def _through(mode, x: Tensor, func: Callable, args: tuple, kwargs: dict) -> Tensor:
    "Relevance goes to `x` alone, whose entries may each be met by several of another operand"
    y = func(*mode.constant(args), **mode.constant(kwargs))
    return mode.pass_on(x.expand_as(y), y)


@register_op('logsumexp')
def _logsumexp(mode, func, args, kwargs):
    "The softmax of the inputs are the shares: the largest gets most"
    def bind(input, dim, keepdim=False):
        x = input.detach()
        y = mode.share(input, x.logsumexp(dim, keepdim=True), torch.softmax(x, dim), dim)
        return y if keepdim else y.squeeze(dim)
    return bind(*args, **kwargs)


@register_op(*GATES.split())
def _gate(mode, func, args, kwargs):
    "Passes relevance on, but counts as a constant in a product: attention weights, squeeze-and-excitation"
    if mode.settings.attention == 'attnlrp' and mode.op == 'softmax': return _softmax(mode, func, args, kwargs)
    return mode.as_gate(_pass(mode, func, args, kwargs))


def _softmax(mode, func, args, kwargs):
    "R(x_i) = x_i (R_i − s_i Σ_j R_j), Achtibat et al. 2024, proposition 3.1: a share of x·∂s/∂x; what a mask cut off has none"
    x = args[0].masked_fill(args[0].detach() == float('-inf'), torch.finfo(args[0].dtype).min / 2)
    return mode.mix(func, (x, *args[1:]), kwargs)


@register_op(*CONSTANTS.split())
def _constant(mode, func, args, kwargs): return func(*mode.constant(args), **mode.constant(kwargs))


@register_op(*DROPOUTS.split())
def _dropout(mode, func, args, kwargs):
    "As in evaluation; in training its result is another tensor than its input, which may be overwritten apart from it"
    return args[0].clone()


# Products

def as_constants(mode, a: Any, b: Any) -> tuple[Any, Any]:
    "The factors of a product: a gate is a constant; of two that carry relevance each gets half"
    if mode.carries(a) and mode.carries(b):
        if mode.is_gate(a): a = a.detach()
        elif mode.is_gate(b): b = b.detach()
        else: a, b = (scaled(t, t, .5) for t in (a, b))
    return a, b


@register_op('mul', 'rmul', 'imul', 'multiply')
def _mul(mode, func, args, kwargs):
    return mode.mix(func, (*as_constants(mode, *args[:2]), *args[2:]), kwargs)


@register_op('matmul', 'rmatmul', 'imatmul', 'bmm', 'mm', 'mv', 'dot', 'vdot', 'inner', 'outer', 'ger', 'kron', 'tensordot')
def _matmul(mode, func, args, kwargs):
    return mode.mix(func, (*as_constants(mode, *args[:2]), *args[2:]), kwargs, mode.eps)


@register_op('addmm', 'addmv', 'addr', 'addbmm', 'baddbmm', 'addcmul')
def _add_product(mode, func, args, kwargs):
    "A sum with a product"
    names = [n for n in ('mat1', 'mat', 'batch1', 'vec1', 'tensor1', 'mat2', 'batch2', 'vec', 'vec2', 'tensor2') if n in kwargs]
    values = [*args, *(kwargs[n] for n in names)]
    rest = {k: v for k, v in kwargs.items() if k not in names}
    return mode.mix(func, (values[0], *as_constants(mode, *values[1:3]), *values[3:]), rest, mode.eps)


@register_op('addcdiv')
def _addcdiv(mode, func, args, kwargs):
    def bind(input, tensor1, tensor2, value=1):
        with mode: return input + value * tensor1 / tensor2
    return bind(*args, **kwargs)


@register_op('lerp')
def _lerp(mode, func, args, kwargs):
    "A sum of two by weights, which are constants"
    def bind(input, end, weight): return mode.mix(func, (input, end, mode.constant(weight)), {}, mode.eps)
    return bind(*args, **kwargs)


@register_op('einsum')
def _einsum(mode, func, args, kwargs):
    operands = args[1:] if len(args) > 2 else tuple(args[1])
    if len(operands) == 2: operands = as_constants(mode, *operands)
    return mode.mix(func, (args[0], *operands), kwargs, mode.eps)


@register_op('glu')
def _glu(mode, func, args, kwargs):
    "One half of the channels, gated by the other"
    def bind(input, dim=-1):
        values, gates = input.chunk(2, dim)
        return mode.mix(torch.mul, (values, gates.detach().sigmoid()), {})
    return bind(*args, **kwargs)


# Quotients and powers: what stands below, or above, is a constant, unless it alone carries relevance

@register_op('div', 'truediv', 'itruediv', 'idiv', 'true_divide', 'divide', 'floor_divide', 'floordiv', 'fmod', 'remainder')
def _div(mode, func, args, kwargs):
    if not mode.carries(args[0]): return _through(mode, args[1], func, args, kwargs)
    if func.__name__.startswith(('fmod', 'remainder', 'floor', '__floor')) or kwargs.get('rounding_mode'):
        return _through(mode, args[0], func, args, kwargs)
    return mode.mix(func, (args[0], *mode.constant(args[1:])), kwargs)


@register_op('rtruediv', 'rdiv', 'rfloordiv', 'rpow')
def _turned(mode, func, args, kwargs):
    "Methods of the second operand"
    if mode.carries(args[1]): return _through(mode, args[1], func, args, kwargs)
    return _through(mode, args[0], func, args, kwargs)


@register_op('pow', 'float_power', 'ipow')
def _pow(mode, func, args, kwargs):
    return _through(mode, args[0] if mode.carries(args[0]) else args[1], func, args, kwargs)
