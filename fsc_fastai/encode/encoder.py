"Any backbone as an encoder: images to feature maps `(n, C, H, W)`, whatever the layout of the backbone"
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import timm
import torch
from torch import Tensor, nn

from ..as_built import as_built, blueprint
from ..data.image_config import ImageConfig
from ..data.size import as_size, sides, size_text
from ..tensors import evaluating
from . import backbones  # noqa: F401  registers the field's backbones with timm
from .checkpoints import LoadReport, load_encoder_weights, read_checkpoint
from .flor import mix_norms
from .pretrained import check_name, has_weights, hub_id, source_of

__all__ = ['Encoder', 'ImageSize', 'Weights', 'TokenPool', 'create_encoder', 'timm_body']

ImageSize = int | tuple[int, int] | list[int]
Weights = bool | str | Path | Mapping[str, Any]
TokenPool = Literal['auto', 'cls', 'mean', 'both']


class Encoder(nn.Module):
    """A backbone whose output is always a map `(n, C, H, W)`.

    For convolutional networks this is the last map, permuted if they compute channels-last; for transformers, their patch tokens
    as a map; for a module that returns vectors, a map of 1×1. With `pool` the map is also 1×1 and holds the class token of a
    transformer ('cls'), the mean of its patches ('mean'), both concatenated ('both'), or the features that the classifier of the
    backbone was trained on ('auto'), after the norm that precedes it. Raises `ValueError` for an image size that the backbone
    cannot encode, and for a `pool` that it does not have.
    """
    config: dict[str, Any] | None = None # The arguments of `create_encoder`, if it was built by name
    trained_on: ImageConfig | None = None # The images that its pretrained weights were trained on, if timm knows them
    loaded: LoadReport | None = None # What was loaded from a checkpoint

    def __init__(self,
        body: nn.Module, # A timm model, or any module that maps images to feature maps or vectors
        img_size: ImageSize = 84, # Side of the training images, or (height, width)
        in_chans: int = 3, # Channels of the images
        name: str = '', # Name of the backbone in errors; default: its class
        pool: TokenPool | None = None, # 'auto', 'cls', 'mean' or 'both': vectors instead of maps; None: maps
    ):
        super().__init__()
        self.body, self.img_size, self.in_chans = body, as_size('img_size', img_size), in_chans
        self.name, self.pool = name or type(body).__name__, _checked_pool(pool, body, name)
        self.channels_last = getattr(body, 'output_fmt', 'NCHW') == 'NHWC'
        self.out_shape = self._probe()
        self.num_features = self.out_shape[0]
        self.ends_nonnegative = self._ends_nonnegative()
        self.blueprint = blueprint(self)

    @property
    def nonnegative(self) -> bool:
        "Are all feature maps nonnegative, as after a ReLU? False if a part of the encoder was changed"
        return getattr(self, 'ends_nonnegative', False) and as_built(self, type(self))

    def forward(self, x: Tensor) -> Tensor:
        "Images `(n, in_chans, height, width)` to feature maps `(n, C, H, W)`"
        encode: Any = getattr(self.body, 'forward_features', self.body)
        f = encode(x)
        if self.pool is not None: return self._pooled(f)[..., None, None]
        if f.ndim == 3: return self._tokens_as_map(f, x.shape[-2], x.shape[-1])
        if f.ndim == 2: return f[..., None, None]
        return f.permute(0, 3, 1, 2) if self.channels_last else f

    def _pooled(self, f: Tensor) -> Tensor:
        "Vectors `(n, C)` of what the backbone gives, by `pool`"
        body: Any = self.body
        if self.pool == 'auto': return body.forward_head(f, pre_logits=True).flatten(1)
        if f.ndim < 3: return f
        if f.ndim == 4: return f.mean((1, 2) if self.channels_last else (2, 3))
        mean = f[:, getattr(body, 'num_prefix_tokens', 0):].mean(1)
        # where patches are averaged in training, timm puts the last norm behind that
        norm = getattr(body, 'fc_norm', None) or nn.Identity()
        return torch.cat([norm(o) for o in {'cls': [f[:, 0]], 'mean': [mean]}.get(str(self.pool), [f[:, 0], mean])], 1)

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
        return like.new_zeros(1, self.in_chans, *sides(self.img_size))

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


def _checked_pool(pool: TokenPool | None, body: nn.Module, name: str) -> TokenPool | None:
    "The pool, None where 'auto' asks a module that has no head. Raises `ValueError` for one that the backbone cannot give"
    if pool not in (None, *get_args(TokenPool)): raise ValueError(f'pool={pool!r}: choose from {get_args(TokenPool)}, or None')
    if pool in ('cls', 'both') and getattr(body, 'cls_token', None) is None:
        raise ValueError(f"pool={pool!r}: {name or type(body).__name__} has no class token, 'auto' and 'mean' suit it")
    return None if pool == 'auto' and not hasattr(body, 'forward_head') else pool


def timm_body(
    arch: str, # A timm name
    pretrained: bool, # Load timm's weights
    img_size: int | tuple[int, int], # Size of the images
    in_chans: int, # Channels of the images
    flor: Sequence[float] | None = None, # Norms of FLoR, see `create_encoder`
    pool: TokenPool | None = None, # Has no effect on the body
    **kwargs: Any, # For `timm.create_model`
) -> nn.Module:
    "A timm model without its classifier, built for `img_size` if it has a fixed size"
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
    arch: str | nn.Module, # A timm name (`timm.list_models()`), or a module that maps images to feature maps
    pretrained: Weights = False, # Weights: True for timm's, a checkpoint file, or a state dict
    img_size: ImageSize = 84, # Side of the training images, or (height, width)
    in_chans: int = 3, # Channels of the images
    flor: Sequence[float] | None = None, # (a, b): mix instance norms into the batch norms, by draws from Beta(a, b)
    pool: TokenPool | None = None, # 'auto', 'cls', 'mean' or 'both': vectors instead of maps, see `Encoder`; None: maps
    remap: bool = False, # Match the tensors of a checkpoint by position, where names differ but the order is the same
    **kwargs: Any, # For `timm.create_model`
) -> Encoder:
    """An encoder from a timm name or a module, which keeps its weights; it has `num_features` and `out_shape` = (C, H, W).

    An `Encoder` for this image size is returned unchanged. Norms of `flor` (Zou et al. 2024) are part of the encoder and saved
    with it; weights of the network without them load into its batch norms. `encoder.loaded` reports what came from a checkpoint.
    Raises `ValueError` for an unknown name (and offers the nearest ones), for weights that do not exist or do not fit, and for an
    image size that the backbone cannot encode; `ConnectionError` if timm's weights are out of reach.

    >>> create_encoder('conv4', img_size=32).out_shape
    (64, 2, 2)
    """
    img_size = as_size('img_size', img_size)
    online = pretrained is True or hub_id(pretrained) is not None
    if isinstance(arch, Encoder):
        encoder = arch
        if (arch.img_size, arch.in_chans, pool or arch.pool) != (img_size, in_chans, arch.pool):
            encoder = Encoder(arch.body, img_size, in_chans, arch.name, pool or arch.pool)
            encoder.config = arch.config and {**arch.config, 'img_size': img_size} | ({'pool': pool} if pool else {})
            encoder.trained_on = arch.trained_on
    elif isinstance(arch, nn.Module): encoder = Encoder(arch, img_size, in_chans, pool=pool)
    else: encoder = _named(arch, online, hub_id(pretrained), img_size, in_chans, pool, kwargs)
    if pool and not encoder.config: encoder.config = {**_plain(encoder), 'pool': pool}
    weights: Any = None if isinstance(pretrained, bool) or online else read_checkpoint(pretrained)
    mixed_weights = weights is not None and flor is not None and any('.IN.' in name for name in weights.state)
    if weights is not None and not mixed_weights: encoder.loaded = load_encoder_weights(encoder, weights, remap)
    if flor is not None: encoder = _mixed(encoder, flor)
    if weights is not None and mixed_weights: encoder.loaded = load_encoder_weights(encoder, weights, remap)
    if isinstance(arch, str) and pretrained is not False and has_weights(arch): encoder.trained_on = ImageConfig.of(encoder.body)
    return encoder


def _plain(encoder: Encoder) -> dict[str, Any]: return {'arch': None, 'img_size': encoder.img_size, 'in_chans': encoder.in_chans}


def _named(arch: str, online: bool, hub: str | None, img_size: int | tuple[int, int], in_chans: int, pool: TokenPool | None,
           kwargs: dict[str, Any]) -> Encoder:
    "An encoder of timm's or of ours, with pretrained weights from this machine or a hub where `online`"
    check_name(arch)
    if online and hub is None and not has_weights(arch):
        raise ValueError(f'timm has no pretrained weights for {arch!r}: '
                         'pass `pretrained=` a checkpoint file or a state dict, or pre-train the encoder first')
    source = source_of(arch, hub) if online or hub_id(arch) else {}
    try: body = timm_body(arch, online, img_size, in_chans, pretrained_cfg_overlay=source or None, **kwargs)
    except RuntimeError as e:
        if not online or isinstance(e, OSError): raise
        raise ValueError(f'the pretrained weights of {arch!r} ({ImageConfig.of(arch)}) do not fit a backbone for images of '
                         f'{size_text(img_size)} in {in_chans} channels: {str(e)[:300]}') from e
    # a name that a saved classifier can hold, and that is built without a hub
    name = cast(Any, body).pretrained_cfg['architecture'] if ':' in arch else arch
    encoder = Encoder(body, img_size, in_chans, name, pool)
    encoder.config = {'arch': name, 'img_size': img_size, 'in_chans': in_chans, **kwargs} | ({'pool': pool} if pool else {})
    return encoder


def _mixed(encoder: Encoder, flor: Sequence[float]) -> Encoder:
    "An encoder around the same body, whose batch norms get instance norms beside them"
    mixed = Encoder(mix_norms(encoder.body, *flor), encoder.img_size, encoder.in_chans, encoder.name, encoder.pool)
    mixed.config, mixed.loaded = {**(encoder.config or _plain(encoder)), 'flor': list(flor)}, encoder.loaded
    return mixed
