"Any backbone as an encoder: images to feature maps `(n, C, H, W)`, whatever layout the backbone itself works in"
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..as_built import as_built, blueprint
from ..nearest import unknown
from ..tensors import evaluating
from . import backbones  # noqa: F401  registers the field's backbones with timm
from .checkpoints import load_encoder_weights, read_state
from .flor import mix_norms

__all__ = ['Encoder', 'ImageSize', 'Weights', 'create_encoder', 'timm_body']

ImageSize = int | tuple[int, int] | list[int]
Weights = bool | str | Path | Mapping[str, Any]


class Encoder(nn.Module):
    """A backbone whose output is always a map `(n, C, H, W)`.

    Convolutional nets give their last map, transformers their tokens as a map (without class and register tokens), nets that work
    channels-last are permuted, and a module that gives vectors has maps of 1×1.
    Raises `ValueError` for an image size that the backbone cannot encode.
    """
    config: dict[str, Any] | None = None # The plain arguments of `create_encoder`, where a name built it

    def __init__(self,
        body: nn.Module, # A timm model, or any module from images to maps or vectors
        img_size: ImageSize = 84, # Side of the training images, or (height, width)
        in_chans: int = 3, # Channels of the images
        name: str = '', # What errors call the backbone; default: its class
    ):
        super().__init__()
        self.body, self.img_size, self.in_chans = body, _square(img_size), in_chans
        self.name = name or type(body).__name__
        self.channels_last = getattr(body, 'output_fmt', 'NCHW') == 'NHWC'
        self.out_shape = self._probe()
        self.num_features = self.out_shape[0]
        self.ends_nonnegative = self._ends_nonnegative()
        self.blueprint = blueprint(self)

    @property
    def nonnegative(self) -> bool:
        "Are all feature maps nonnegative, as behind a ReLU? False once a part of the encoder was changed"
        return getattr(self, 'ends_nonnegative', False) and as_built(self, type(self))

    def forward(self, x: Tensor) -> Tensor:
        "Images `(n, in_chans, height, width)` to feature maps `(n, C, H, W)`"
        encode: Any = getattr(self.body, 'forward_features', self.body)
        f = encode(x)
        if f.ndim == 3: return self._tokens_as_map(f, x.shape[-2], x.shape[-1])
        if f.ndim == 2: return f[..., None, None]
        return f.permute(0, 3, 1, 2) if self.channels_last else f

    def _tokens_as_map(self, tokens: Tensor, height: int, width: int) -> Tensor:
        tokens = tokens[:, getattr(self.body, 'num_prefix_tokens', 0):]
        n = tokens.shape[1]
        grid: Any = getattr(getattr(self.body, 'patch_embed', None), 'dynamic_feat_size', None)
        h, w = grid((height, width)) if grid else (0, 0)
        if h * w != n:  # pooling transformers end with fewer tokens than patches, in the shape of the image
            h = max(round(math.sqrt(n * height / width)), 1)
            w = n // h
        if h * w != n: raise ValueError(f'its {n} tokens do not form a map')
        return tokens.transpose(1, 2).unflatten(2, (h, w))

    def _ends_nonnegative(self) -> bool:
        "Read off the autograd graph of a pass, so for any net, whatever its modules are called"
        if torch.is_inference_mode_enabled(): return False
        with evaluating(self), torch.enable_grad(): f = self(self._blank().requires_grad_())
        return _never_negative(f.grad_fn)

    def _blank(self) -> Tensor:
        "One training image"
        like = next(self.body.parameters(), torch.empty(0))
        size = (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size
        return like.new_zeros(1, self.in_chans, *size)

    @torch.no_grad()
    def _probe(self) -> tuple[int, int, int]:
        "The shape of the map of one training image; leaves the modes of the modules as they are"
        blank = self._blank()
        height, width = blank.shape[2:]
        size = f'{height}×{width} px'
        try:
            with evaluating(self): shape = tuple(self(blank).shape[1:])
        except Exception as e:  # a backbone can fail in any way
            raise ValueError(f'{self.name} cannot encode images of {size}: {e}. Another image size may suit it, '
                             'or a backbone that shrinks images less') from e
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f'{self.name} reduces images of {size} to a map of shape {shape}: '
                             'use larger images, or a backbone that shrinks them less')
        return shape


_NEVER_NEGATIVE = {'ReluBackward0', 'SigmoidBackward0', 'HardsigmoidBackward0', 'SoftplusBackward0', 'SoftmaxBackward0',
                   'AbsBackward0', 'ExpBackward0'}
# With inputs that are never negative their results are not, either
_KEEP_SIGNS = {f'{name}Backward{i}' for name, i in dict(
    MaxPool2DWithIndices=0, AvgPool2D=0, AdaptiveAvgPool2D=0, Mean=1, Sum=1, View=0, UnsafeView=0, ReshapeAlias=0, Permute=0,
    Transpose=0, Clone=0, Slice=0, Select=0, Squeeze=1, Unsqueeze=0, Add=0, Cat=0).items()}


def _never_negative(node: Any) -> bool:
    "Is what this node of an autograd graph computed never negative?"
    if node is None: return False
    if node.name() == 'HardtanhBackward0': return node._saved_min_val >= 0
    if node.name() in _NEVER_NEGATIVE: return True
    return node.name() in _KEEP_SIGNS and all(_never_negative(source) for source, _ in node.next_functions)


def _square(img_size: ImageSize) -> int | tuple[int, int]:
    "The side of a square, or (height, width)"
    if isinstance(img_size, int): return img_size
    height, width = img_size
    return height if height == width else (height, width)


def _check_name(arch: str, pretrained: bool) -> None:
    if ':' in arch: return  # a model on a hub or in a folder, which timm looks for itself
    if not timm.is_model(arch): raise unknown('backbone', arch, timm.list_models(), '`timm.list_models()` lists them all')
    cfg = timm.get_pretrained_cfg(arch)
    if pretrained and not (cfg and cfg.has_weights):
        raise ValueError(f'timm has no pretrained weights for {arch!r}: '
                         'pass `pretrained=` a checkpoint file or a state dict, or pre-train the encoder first')


def timm_body(
    arch: str, # A timm name
    pretrained: bool, # With timm's weights?
    img_size: int | tuple[int, int], # Of the images
    in_chans: int, # Channels of the images
    flor: Sequence[float] | None = None, # As in `create_encoder`
    **kwargs: Any, # For `timm.create_model`
) -> nn.Module:
    "The timm model of that name without its classifier, built for `img_size` if it asks for a size at all"
    if flor is not None: return mix_norms(timm_body(arch, pretrained, img_size, in_chans, **kwargs), *flor)
    size = {'img_size': img_size, 'dynamic_img_size': True, 'dynamic_img_pad': True}
    while True:
        try: return timm.create_model(arch, pretrained=pretrained, in_chans=in_chans, num_classes=0, **{**size, **kwargs})
        except TypeError as e:
            # that a model knows nothing of image sizes, or only of a fixed one, shows only by this error
            refused = [k for k in size if f"'{k}'" in str(e) and k not in kwargs]
            if not refused: raise
            for k in refused: del size[k]


def create_encoder(
    arch: str | nn.Module, # A timm name (`timm.list_models()`), or a module from images to maps
    pretrained: Weights = False, # True: timm's weights; or a checkpoint file or a state dict with those of the encoder
    img_size: ImageSize = 84, # Side of the training images, or (height, width)
    in_chans: int = 3, # Channels of the images
    flor: Sequence[float] | None = None, # (a, b): mix instance norms into the batch norms, by draws from Beta(a, b)
    **kwargs: Any, # For `timm.create_model`
) -> Encoder:
    """An encoder by timm name, or around a module (which keeps its weights), with `num_features` and `out_shape` = (C, H, W).

    An `Encoder` for this image size is returned as it is. Norms of `flor` (Zou et al. 2024) are part of the encoder and saved
    with it; weights of the same network without them are those of its batch norms. Raises `ValueError` for an unknown name
    (nearest names offered), for weights that do not exist or do not fit, and for an image size that it cannot encode.

    >>> create_encoder('conv4', img_size=32).out_shape
    (64, 2, 2)
    """
    img_size = _square(img_size)
    if isinstance(arch, Encoder) and (arch.img_size, arch.in_chans) == (img_size, in_chans): encoder = arch
    elif isinstance(arch, Encoder):
        encoder = Encoder(arch.body, img_size, in_chans, arch.name)
        encoder.config = arch.config and {**arch.config, 'img_size': img_size}
    elif isinstance(arch, nn.Module): encoder = Encoder(arch, img_size, in_chans)
    else:
        _check_name(arch, pretrained is True)
        encoder = Encoder(timm_body(arch, pretrained is True, img_size, in_chans, **kwargs), img_size, in_chans, arch)
        encoder.config = {'arch': arch, 'img_size': img_size, 'in_chans': in_chans, **kwargs}
    weights = None if isinstance(pretrained, bool) else read_state(pretrained)
    mixed_weights = weights is not None and flor is not None and any('.IN.' in name for name in weights)
    if weights is not None and not mixed_weights: load_encoder_weights(encoder, weights)
    if flor is not None: encoder = _mixed(encoder, flor)
    if weights is not None and mixed_weights: load_encoder_weights(encoder, weights)
    return encoder


def _mixed(encoder: Encoder, flor: Sequence[float]) -> Encoder:
    "An encoder around the same body, whose batch norms get instance norms beside them"
    mixed = Encoder(mix_norms(encoder.body, *flor), encoder.img_size, encoder.in_chans, encoder.name)
    plain = encoder.config or {'arch': None, 'img_size': encoder.img_size, 'in_chans': encoder.in_chans}
    mixed.config = {**plain, 'flor': list(flor)}
    return mixed
