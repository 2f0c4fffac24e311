"What the engine does with layers: linear ones and convolutions, norms, similarities, attention."
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ops import as_constants, register_op
from .rules import Layer

__all__ = ['FUNCTION_CLASS']


@register_op('linear')
def _linear(mode, func, args, kwargs):
    def run(input, weight, bias=None):
        layer = Layer(F.linear, lambda s, w, x: s @ w, input.detach(), F.linear(input.detach(), weight), weight)
        return mode.layer(input, layer, bias)
    return run(*args, **kwargs)


def _convolution(mode, func, input, weight, bias, stride, padding, dilation, groups, output_padding=0):
    n, transposed = weight.ndim - 2, func.__name__.startswith('conv_transpose')
    if input.ndim == n + 1:
        return _convolution(mode, func, input[None], weight, bias, stride, padding, dilation, groups, output_padding)[0]
    many = lambda v: [v]*n if isinstance(v, int) else list(v)*(n if len(v) == 1 else 1)
    stride, dilation, output_padding = many(stride), many(dilation), many(output_padding)
    if isinstance(padding, str):
        extra = [d*(k - 1) if padding == 'same' else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(e % 2 for e in extra): input = F.pad(input, [p for e in extra[::-1] for p in (0, e % 2)])
        padding = [e//2 for e in extra]
    padding = many(padding)

    def run(x, w): return torch.convolution(x, w, None, stride, padding, dilation, transposed, output_padding, groups)
    def transpose(s, w, x):
        return torch.ops.aten.convolution_backward(s, x, w, None, stride, padding, dilation, transposed, output_padding,
                                                   groups, [True, False, False])[0]
    layer = Layer(run, transpose, input.detach(), run(input.detach(), weight), weight)
    return mode.layer(input, layer, bias, out_dim=1 if transposed else 0)


@register_op('conv1d', 'conv2d', 'conv3d')
def _conv(mode, func, args, kwargs):
    def bind(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        return _convolution(mode, func, input, weight, bias, stride, padding, dilation, groups)
    return bind(*args, **kwargs)


@register_op('conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d')
def _conv_transpose(mode, func, args, kwargs):
    def bind(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
        return _convolution(mode, func, input, weight, bias, stride, padding, dilation, groups, output_padding)
    return bind(*args, **kwargs)


# Norms

def _channels(v: Tensor | float, like: Tensor) -> Tensor | float:
    "A vector over channels in the shape that broadcasts to `like`"
    return v.reshape(1, -1, *[1]*(like.ndim - 2)) if isinstance(v, Tensor) else v


@register_op('batch_norm')
def _batch_norm(mode, func, args, kwargs):
    def bind(input, running_mean=None, running_var=None, weight=None, bias=None, training=False, momentum=.1, eps=1e-5, *_, **__):
        # torch.batch_norm has another order than F.batch_norm
        if func is torch.batch_norm: weight, bias, running_mean, running_var = running_mean, running_var, weight, bias
        x = input.detach()
        dims = [d for d in range(x.ndim) if d != 1]
        batch = training or running_mean is None
        mean, var = (x.mean(dims), x.var(dims, unbiased=False)) if batch else (running_mean, running_var)
        scale = (var + eps).rsqrt() * (1. if weight is None else weight)
        y = F.batch_norm(x, mean, var, weight, bias, False, 0., eps)
        shift = (0. if bias is None else bias) - mean * scale
        return mode.affine(input, y, _channels(scale, x), _channels(shift, x))
    return bind(*args, **kwargs)


def _norm_of_groups(mode, input: Tensor, n_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    x = input.detach()
    std = (x.reshape(x.shape[0], n_groups, -1).var(-1, unbiased=False) + eps).sqrt()
    std = std.repeat_interleave(x.shape[1]//n_groups, 1).reshape(*x.shape[:2], *[1]*(x.ndim - 2))
    scale = (1. if weight is None else _channels(weight, x)) / std
    return mode.affine(input, F.group_norm(x, n_groups, weight, bias, eps), scale, None)


@register_op('group_norm')
def _group_norm(mode, func, args, kwargs):
    def bind(input, num_groups, weight=None, bias=None, eps=1e-5, *_, **__):
        return _norm_of_groups(mode, input, num_groups, weight, bias, eps)
    return bind(*args, **kwargs)


@register_op('instance_norm')
def _instance_norm(mode, func, args, kwargs):
    def bind(input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=.1, eps=1e-5,
             *_, **__):
        if func is torch.instance_norm: weight, bias, running_mean, running_var = running_mean, running_var, weight, bias
        if use_input_stats: return _norm_of_groups(mode, input, input.shape[1], weight, bias, eps)
        return _batch_norm(mode, F.batch_norm, (input, running_mean, running_var, weight, bias, False, momentum, eps), {})
    return bind(*args, **kwargs)


@register_op('layer_norm')
def _layer_norm(mode, func, args, kwargs):
    "The mean is subtracted, the standard deviation is a constant (Ali et al. 2022)"
    def bind(input, normalized_shape, weight=None, bias=None, eps=1e-5, *_, **__):
        x, dims = input.detach(), tuple(range(-len(normalized_shape), 0))
        scale = _times(weight, (x.var(dims, unbiased=False, keepdim=True) + eps).rsqrt())
        norm = lambda x: (x - x.mean(dims, keepdim=True)) * scale + (0. if bias is None else bias)
        return mode.mix(norm, (input,), {}, mode.eps)
    return bind(*args, **kwargs)


@register_op('rms_norm')
def _rms_norm(mode, func, args, kwargs):
    "The root of the mean square is a constant"
    def bind(input, normalized_shape, weight=None, eps=None):
        x, dims = input.detach(), tuple(range(-len(normalized_shape), 0))
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        scale = _times(weight, (x.square().mean(dims, keepdim=True) + eps).rsqrt())
        return mode.mix(torch.mul, (input, scale), {}, mode.eps)
    return bind(*args, **kwargs)


def _times(weight: Tensor | None, scale: Tensor) -> Tensor: return scale if weight is None else weight * scale


# Similarities

@register_op('normalize')
def _normalize(mode, func, args, kwargs):
    def bind(input, p=2., dim=1, eps=1e-12, **_):
        return mode.mix(torch.div, (input, input.detach().norm(p, dim, keepdim=True).clamp_min(eps)), {})
    return bind(*args, **kwargs)


@register_op('cosine_similarity')
def _cosine(mode, func, args, kwargs):
    "Norms are constants; ε-rule over the sum of the products"
    def bind(x1, x2, dim=1, eps=1e-8):
        a, b = as_constants(mode, x1, x2)
        norms = (a.detach().norm(2, dim, keepdim=True) * b.detach().norm(2, dim, keepdim=True)).clamp_min(eps)
        product = mode.mix(lambda a, b: a * b / norms, (a, b), {})
        return mode.mix(torch.sum, (product, dim), {}, mode.eps)
    return bind(*args, **kwargs)


# Attention

@register_op('scaled_dot_product_attention')
def _attention(mode, func, args, kwargs):
    "The weights are constants: relevance flows through the values (Ali et al. 2022)"
    def bind(query, key, value, attn_mask=None, dropout_p=0., is_causal=False, scale=None, enable_gqa=False):
        q, k = query.detach(), key.detach()
        if enable_gqa:
            k = k.repeat_interleave(q.shape[-3]//k.shape[-3], -3)
            value = value.repeat_interleave(q.shape[-3]//value.shape[-3], -3)
        if mode.settings.attention == 'attnlrp':
            return mode.again(_attended, query, key, value, attn_mask, is_causal, scale, enable_gqa)
        eye = torch.eye(k.shape[-2], dtype=q.dtype, device=q.device).expand(*k.shape[:-2], -1, -1)
        weights = func(q, k, eye, attn_mask, 0., is_causal, scale=scale or 1/math.sqrt(q.shape[-1]))
        return mode.mix(torch.matmul, (weights, value), {}, mode.eps)
    return bind(*args, **kwargs)


def _attended(query, key, value, mask, is_causal=False, scale=None, enable_gqa=False):
    "Attention step by step, so that each step has its rule: products share by halves, the softmax by its derivative"
    if enable_gqa: key = key.repeat_interleave(query.shape[-3]//key.shape[-3], -3)
    scores = (query @ key.transpose(-2, -1)) * (scale or 1/math.sqrt(query.shape[-1]))
    if is_causal: mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None: scores = scores.masked_fill(~mask, float('-inf')) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1) @ value


@register_op('multi_head_attention_forward')
def _multi_head_attention(mode, func, args, kwargs):
    names = ['query', 'key', 'value', 'embed_dim_to_check', 'num_heads', 'in_proj_weight', 'in_proj_bias', 'bias_k', 'bias_v',
             'add_zero_attn', 'dropout_p', 'out_proj_weight', 'out_proj_bias']
    call = dict(zip(names, args, strict=False)) | kwargs
    value, heads = call['value'], call['num_heads']
    call |= dict(dropout_p=0., need_weights=True, average_attn_weights=False)
    _, weights = func(**{k: mode.constant(v) for k, v in call.items()})
    def project(i, name):
        w, b = call['in_proj_weight'], call['in_proj_bias']
        w = call[f'{name[0]}_proj_weight'] if w is None else w.chunk(3)[i]
        x = _linear(mode, F.linear, (call[name], w, None if b is None else b.chunk(3)[i]), {})
        return x if batched else x[:, None]
    batched = value.ndim == 3
    v = project(2, 'value')
    if not batched: weights = weights[None]
    by_head = lambda values: values.unflatten(2, (heads, -1)).permute(1, 2, 0, 3)
    v, n = by_head(v), v.shape[0]
    # a learned value takes part as a bias does, a value of zeros not at all
    bias = 0. if call['bias_v'] is None else weights[..., n:n + 1] @ by_head(call['bias_v'])
    attend = lambda weights, v: weights @ v + bias
    if mode.settings.attention == 'attnlrp':
        q, k = by_head(project(0, 'query')), by_head(project(1, 'key'))
        mixed = mode.again(_attended, q, k, v, _mask_of(call, weights))
    else: mixed = mode.mix(attend, (weights[..., :n], v), {}, mode.eps)
    mixed = mixed.permute(2, 0, 1, 3).flatten(2)
    out = _linear(mode, F.linear, (mixed if batched else mixed[:, 0], call['out_proj_weight'], call['out_proj_bias']), {})
    weights = weights if batched else weights[0]
    return out, (weights.mean(-3) if kwargs.get('average_attn_weights', True) else weights)


def _mask_of(call: dict, weights: Tensor) -> Tensor:
    "What is added to the scores of `nn.MultiheadAttention`: −∞ where nothing was looked at, and a mask of numbers"
    if call['bias_k'] is not None or call['bias_v'] is not None or call['add_zero_attn']:
        raise NotImplementedError("attention='attnlrp' has no rule for learned keys and values (add_bias_kv, add_zero_attn): use "
                                  "LRP(attention='constant')")
    given = call.get('attn_mask')
    bias = given.detach() if given is not None and given.is_floating_point() else torch.zeros((), device=weights.device)
    if bias.ndim == 3: bias = bias.unflatten(0, weights.shape[:2])
    return torch.where(weights > 0, bias, float('-inf'))


# Layer classes of functions that run outside a module
FUNCTION_CLASS = {'linear': nn.Linear, 'conv1d': nn.Conv1d, 'conv2d': nn.Conv2d, 'conv3d': nn.Conv3d,
                  'conv_transpose1d': nn.ConvTranspose1d, 'conv_transpose2d': nn.ConvTranspose2d,
                  'conv_transpose3d': nn.ConvTranspose3d, 'multi_head_attention_forward': nn.Linear}
