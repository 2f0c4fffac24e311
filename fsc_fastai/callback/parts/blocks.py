"The blocks of a backbone, where a training method changes feature maps on their way"
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .styles import viewed_back, viewed_tokens

__all__ = ['style_blocks', 'changed', 'kept_maps', 'apart', 'NextMaps']

Change = Callable[[Tensor], Tensor]


def style_blocks(
    model: Any, # A few-shot model, whose `encoder` is looked at
    names: Sequence[str] | None = None, # Modules of the model that give feature maps; None: as below
) -> list[str]:
    """Names, within the model, of the three blocks after which styles are changed: all stages of the backbone but stem and last.

    Stages are those that timm states (`feature_info`); the residual blocks 1 to 3 of ResNet10. A net of more than six, as a ViT,
    is cut into four. Raises `ValueError` for a backbone without stages, and for names that are not in the model.
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
    changes: Mapping[str, Change], # By name of the block, from maps `(n, C, H, W)` to such maps
    vit_view: bool = False, # Give a ViT's tokens to `changes` in the form of `viewed_tokens`
) -> Iterator[None]:
    """Inside, what each named block gives is changed before it goes on. Afterwards nothing of it is left on the model.

    Maps of nets that work channels-last are permuted there and back. Raises `ValueError` for a block that gives tokens, unless
    `vit_view`: a channel of a ViT has no place in the image whose statistics were a style.
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
    names: Sequence[str] | None = None, # As in `style_blocks`
) -> Iterator[list[Tensor]]:
    "Inside, the maps of the blocks and the encoder's own come into a list in every pass in training mode"
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
    model: nn.Module, # Runs within the block on several batches in one, of the same size each
    parts: int = 2, # How many they are
) -> Iterator[None]:
    """Inside, a pass over several batches in one is as a pass for each: batch norms see one after the other, in order.

    So the streams meet between two blocks, where one can be changed by the other.
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


class NextMaps:
    "The encoder's feature maps in the next training pass of a model, after which nothing is left on it, however the pass ends"
    def __init__(self,
        model: Any, # A few-shot model
    ):
        self.maps: Any = None
        self.hooks = ExitStack()
        def keep(encoder: nn.Module, args: tuple, maps: Tensor) -> None: self.maps = maps
        def passed(model: nn.Module, args: tuple, output: Any) -> None:
            if model.training: self.close()
        self.hooks.callback(model.encoder.register_forward_hook(keep).remove)
        self.hooks.callback(model.register_forward_hook(passed, always_call=True).remove)

    def close(self) -> None:
        "Take the hooks off the model"
        self.hooks.close()
