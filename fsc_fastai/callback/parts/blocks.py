"The blocks of a backbone, after which training methods read or change feature maps"
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .styles import viewed_back, viewed_tokens

__all__ = ['style_blocks', 'changed', 'kept_maps', 'apart']

Change = Callable[[Tensor], Tensor]


def style_blocks(
    model: Any, # A few-shot model
    names: Sequence[str] | None = None, # Names of modules to take instead; None: as described below
) -> list[str]:
    """Names of the blocks after which styles are changed: all stages of the backbone except stem and last.

    Stages are those of timm's `feature_info`, such as the residual blocks 1 to 3 of ResNet10. A network of more than six stages,
    such as a ViT, is divided into four. Raises `ValueError` for a backbone without stages, and for unknown names.
    """
    if names is None: names = _stages(model.encoder)
    modules = dict(model.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown:
        near = [name for name, m in modules.items() if name.startswith('encoder.') and name.count('.') < 4]
        raise ValueError(f'{type(model).__name__} has no block called {", ".join(map(repr, unknown))}. It has, among others: '
                         f'{", ".join(near[:12])}')
    return list(names)


def _stages(encoder: nn.Module) -> list[str]:
    body: Any = getattr(encoder, 'body', encoder)
    prefix = 'encoder.' if body is encoder else 'encoder.body.'
    stages = [prefix + stage['module'] for stage in getattr(body, 'feature_info', None) or []]
    if len(stages) < 2:
        raise ValueError(f'{type(body).__name__} does not say which modules are its stages (feature_info, as timm has it): '
                         'name those after which styles are changed (blocks=[…])')
    return [stages[len(stages) * k // 4 - 1] for k in (1, 2, 3)] if len(stages) > 6 else stages[-4:-1]


@contextmanager
def changed(
    model: Any, # A few-shot model
    changes: Mapping[str, Change], # For each block by name a function of its maps `(n, C, H, W)`
    vit_view: bool = False, # Pass the tokens of a ViT as `viewed_tokens`
) -> Iterator[None]:
    """Change the output of the named blocks inside the block; afterwards the model is as before.

    Maps of networks that compute channels-last are permuted and permuted back. Raises `ValueError` for a block that returns
    tokens, unless `vit_view`: the channels of a ViT are no maps, so their statistics are no style.
    """
    last = getattr(model.encoder, 'channels_last', False)
    prefix: int = getattr(getattr(model.encoder, 'body', None), 'num_prefix_tokens', 0)
    def hook(name: str, change: Change, block: nn.Module, args: tuple, x: Tensor) -> Tensor:
        if x.ndim == 4: return change(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if last else change(x)
        if x.ndim == 3 and vit_view: return viewed_back(change(viewed_tokens(x, prefix)), x, prefix)
        raise ValueError(f'{name} gives tokens of shape {tuple(x.shape)}, which have no style of a channel: use a convolutional '
                         'backbone, or vit_view=True for the published form, whose channels mix tokens and dimensions')
    with ExitStack() as hooks:
        for name, change in changes.items():
            hooks.callback(model.get_submodule(name).register_forward_hook(partial(hook, name, change)).remove)
        yield


@contextmanager
def kept_maps(
    model: Any, # A few-shot model
    names: Sequence[str] | None = None, # Names of blocks, see `style_blocks`
) -> Iterator[list[Tensor]]:
    "A list that collects the maps of the blocks and of the encoder in every training pass inside the block"
    maps: list[Tensor] = []
    def keep(x: Tensor) -> Tensor:
        if model.training: maps.append(x)
        return x
    with changed(model, dict.fromkeys(style_blocks(model, names), keep)):
        handle = model.encoder.register_forward_hook(lambda encoder, args, x: keep(x))
        try: yield maps
        finally: handle.remove()


@contextmanager
def apart(
    model: nn.Module, # A model that runs inside the block on concatenated batches of equal size
    parts: int = 2, # Number of batches
) -> Iterator[None]:
    """Let batch norms treat concatenated batches one after the other inside the block, as separate passes would.

    A function between two blocks can thus use the maps of one batch to change those of another.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [vars(m).get('forward') for m in norms]
    def each(forward: Change, x: Tensor) -> Tensor: return torch.cat([forward(part) for part in x.chunk(parts)])
    for m in norms: m.forward = partial(each, m.forward)  # type: ignore[method-assign]
    try: yield
    finally:
        for m, forward in zip(norms, before, strict=True):
            if forward is None: del m.forward
            else: m.forward = forward  # type: ignore[method-assign]
