"Feature-wise transformation: noise on normalised features, so that an encoder meets more domains than it is shown"
from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..tensors import evaluating

__all__ = ['FeatureWiseTransformation', 'add_ft', 'remove_ft', 'ft_layers', 'ft_parameters', 'residual_norms']

_SUMS = ('AddBackward0', 'AddcmulBackward0')
_TORCH_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class FeatureWiseTransformation(nn.Module):
    """Scale and shift every channel by noise whose size γ, β can be learned (Tseng et al. 2020, equations (1) and (2)).

        (1 + ε_γ·softplus(γ)) ⊙ x̂ + ε_β·softplus(β)        ε_γ, ε_β ~ N(0, 1), one draw a channel and call

    Identity in eval mode.
    """
    def __init__(self,
        num_features: int, # Channels C
        gamma: float = 0.3, # Initial γ of every channel
        beta: float = 0.5, # Initial β of every channel
        channel_dim: int = 1, # Where the channels are: 1 for maps `(n, C, H, W)`, −1 for tokens `(n, tokens, C)`
        device: torch.device | None = None, # Of γ, β; None: torch's default
        dtype: torch.dtype | None = None, # Of γ, β; None: torch's default
    ):
        super().__init__()
        def per_channel(value: float) -> nn.Parameter:
            return nn.Parameter(torch.full((num_features,), float(value), device=device, dtype=dtype))
        self.gamma, self.beta = per_channel(gamma), per_channel(beta)
        self.channel_dim = channel_dim

    def extra_repr(self) -> str: return f'{self.gamma.shape[0]}, channel_dim={self.channel_dim}'

    def forward(self, x: Tensor) -> Tensor:
        "Transform normalised features x̂; the shape stays"
        if not self.training: return x
        shape = [1] * x.ndim
        shape[self.channel_dim] = -1
        scale, shift = (torch.randn_like(p) * F.softplus(p, beta=100) for p in (self.gamma, self.beta))
        return (1 + scale).view(shape).to(x.dtype) * x + shift.view(shape).to(x.dtype)

    def follow(self, norm: nn.Module) -> RemovableHandle:
        "Transform the output of `norm` in training mode"
        return _output_of(norm).register_forward_hook(self._transform_output)

    def _transform_output(self, norm: nn.Module, args: tuple, x: Tensor) -> Tensor:
        return self(x) if norm.training else x


def add_ft(
    model: nn.Module, # A few-shot model (the layers go into its `encoder`) or any backbone
    gamma: float = 0.3, # Initial γ of every channel
    beta: float = 0.5, # Initial β of every channel
    names: list[str] | None = None, # Normalisation layers to follow; None: `residual_norms`
    images: Tensor | None = None, # Images `(n, channels, height, width)` for `residual_norms`
) -> dict[str, FeatureWiseTransformation]:
    """Add a transformation after the last norm of every residual block and its shortcut. Returns them by the name of the norm.

    They are forward hooks, so the model's modules, parameters and state dict do not change: checkpoints fit with and without
    them, and an optimizer of the model's parameters does not include theirs (see `ft_parameters`). Raises `ValueError` for a
    model that already has transformations, for names that are no norms, and for a model without norms.
    """
    if ft_layers(model): raise ValueError(f'{type(model).__name__} has feature-wise transformations already: `remove_ft` first')
    if names is None: names = residual_norms(model, images)
    norms = dict(model.named_modules())
    unknown = [name for name in names if name not in norms or not _is_norm(norms[name])]
    if unknown:
        raise ValueError(f'{type(model).__name__} has no normalisation layer called {", ".join(map(repr, unknown))}. '
                         f'It has: {", ".join(name for name, m in norms.items() if _is_norm(m))}')
    layers = {name: _transformation_for(norms[name], model, gamma, beta) for name in names}
    for name, layer in layers.items(): layer.follow(norms[name])
    return layers


def remove_ft(model: nn.Module) -> nn.Module:
    "Remove all feature-wise transformations. Returns the model"
    for place, key, _ in _attached(model): del place._forward_hooks[key]
    return model


def ft_layers(model: nn.Module) -> list[FeatureWiseTransformation]:
    "The transformations of `model`"
    return [layer for *_, layer in _attached(model)]


def ft_parameters(model: nn.Module) -> list[nn.Parameter]:
    "γ and β of all transformations of `model`"
    return [p for layer in ft_layers(model) for p in layer.parameters()]


def residual_norms(
    model: nn.Module, # A few-shot model, of which the `encoder` counts, or any backbone
    images: Tensor | None = None, # Images to run it on; None: blank ones of the size that the model states
) -> list[str]:
    """Names of the last norms before every residual sum, or of all norms if there are no residual sums (conv4, VGG).

    They are found in the autograd graph of one pass in eval mode, so the names of modules do not matter: if both operands of a
    sum come from one tensor, these are the first norms on the way back from the sum to this tensor. A ViT block has two residual
    branches, hence two norms. Raises `ValueError` for a model that cannot run on these images or has no norm.
    """
    encoder = getattr(model, 'encoder', model)
    prefix = 'encoder.' if encoder is not model else ''
    images = _blank_images(encoder) if images is None else images.detach()[:2]
    outputs: dict[Any, str] = {}
    def note(name: str, norm: nn.Module, args: tuple, x: Tensor) -> None: outputs[x.grad_fn] = name
    norms = {name: m for name, m in encoder.named_modules() if _is_norm(m)}
    # the norms of queries and keys are inside attention, others inside a norm that is made of them
    handles = [_output_of(m).register_forward_hook(partial(note, prefix + name)) for name, m in norms.items()
               if not re.search(r'(^|\.)[qk]_norm$', name) and name.rpartition('.')[0] not in norms]
    try:
        with evaluating(encoder), torch.enable_grad(): result = encoder(images.clone().requires_grad_())
    except (RuntimeError, ValueError, AssertionError) as e:
        raise ValueError(f'{type(encoder).__name__} cannot run on images of shape {tuple(images.shape)} ({e}): '
                         'pass `images=` that it takes, or `names=` of its normalisation layers') from e
    finally:
        for handle in handles: handle.remove()
    if not outputs: raise ValueError(f'{type(encoder).__name__} has no normalisation layer for a transformation to follow')
    return _norms_before_sums(result, outputs) or list(outputs.values())


def _norms_before_sums(result: Any, outputs: Mapping[Any, str]) -> list[str]:
    "Names of the norms (`outputs` by graph node) that come last before a sum of two ways from one tensor, in forward order"
    tensors = result if isinstance(result, (tuple, list)) else [result]
    before: dict[Any, set] = {}
    found = set()
    for node in _ancestors([t.grad_fn for t in tensors]):
        operands = [f for f, _ in node.next_functions if f is not None]
        if node.name() not in _SUMS or len(operands) < 2: continue
        for f in operands: before.setdefault(f, _ancestors([f]))
        fork = set.intersection(*(before[f] for f in operands))
        if fork: found |= _ancestors(operands, stop=fork | set(outputs)) & set(outputs) - fork
    return [name for node, name in outputs.items() if node in found]


def _ancestors(nodes: list[Any], stop: set | frozenset = frozenset()) -> set:
    "The nodes of the autograd graph that `nodes` come from, with themselves, not going beyond those in `stop`"
    seen, todo = set(), list(nodes)
    while todo:
        node = todo.pop()
        if node is None or node in seen: continue
        seen.add(node)
        if node not in stop: todo += [f for f, _ in node.next_functions]
    return seen


def _is_norm(m: nn.Module) -> bool:
    "Does the module normalise features? GRN and its like, which compare channels with each other, are no normalisation here"
    if isinstance(m, _TORCH_NORMS): return True
    name, weight = type(m).__name__.lower(), getattr(m, 'weight', None)
    return 'norm' in name and 'responsenorm' not in name and isinstance(weight, Tensor) and weight.ndim == 1


def _output_of(norm: nn.Module) -> nn.Module:
    # timm's norms with a built-in activation end in the children `drop` and `act`: x̂ is what `drop` gives
    drop = getattr(norm, 'drop', None)
    return drop if isinstance(drop, nn.Module) and hasattr(norm, 'act') else norm


def _transformation_for(norm: nn.Module, model: nn.Module, gamma: float, beta: float) -> FeatureWiseTransformation:
    "A transformation of the width, layout, device and dtype of `norm`"
    sizes = (getattr(norm, name, None) for name in ('num_features', 'num_channels', 'normalized_shape', 'weight'))
    size: Any = next(size for size in sizes if size is not None)
    width = size if isinstance(size, int) else size.shape[0] if isinstance(size, Tensor) else size[-1]
    p = next(norm.parameters(), next(model.parameters()))
    # timm calls layer norms that work on maps (n, C, H, W) LayerNorm2d, RmsNorm2d, …
    channel_dim = 1 if re.search('batchnorm|groupnorm|instancenorm|2d', type(norm).__name__, re.I) else -1
    return FeatureWiseTransformation(width, gamma, beta, channel_dim, p.device, p.dtype)


def _attached(model: nn.Module) -> list[tuple[nn.Module, int, FeatureWiseTransformation]]:
    "Every hook of a transformation in `model`: the module it is on, its key there, the transformation"
    return [(m, key, layer) for m in model.modules() for key, hook in m._forward_hooks.items()
            if isinstance(layer := getattr(hook, '__self__', None), FeatureWiseTransformation)]


def _blank_images(encoder: nn.Module) -> Tensor:
    "Two blank images of the size that the encoder, or timm for it, states; 84 px RGB if neither does"
    config = getattr(encoder, 'pretrained_cfg', None) or {}
    channels, *size = config.get('input_size') or (3, 84, 84)
    size = getattr(getattr(encoder, 'patch_embed', None), 'img_size', None) or size
    size = getattr(encoder, 'img_size', None) or size
    height, width = (size, size) if isinstance(size, int) else size
    p = next(encoder.parameters())
    return torch.zeros(2, getattr(encoder, 'in_chans', channels), height, width, device=p.device, dtype=p.dtype)
