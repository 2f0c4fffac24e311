"Any backbone as an encoder: images to feature maps `(n, C, H, W)`, whatever layout the backbone itself works in"
from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from . import backbones  # noqa: F401  registers the field's backbones with timm

__all__ = ['Encoder', 'create_encoder']


class Encoder(nn.Module):
    """A backbone whose output is always a map `(n, C, H, W)`.

    Convolutional nets give their last map, transformers their tokens as a map (without class and register tokens), nets that work
    channels-last are permuted, and a module that gives vectors has maps of 1×1.
    Raises `ValueError` for an image size that the backbone cannot encode.
    """
    def __init__(self,
        body: nn.Module, # A timm model, or any module from images to maps or vectors
        img_size: int = 84, # Side of the training images
        in_chans: int = 3, # Channels of the images
        name: str = '', # What errors call the backbone; default: its class
    ):
        super().__init__()
        self.body, self.img_size, self.in_chans = body, img_size, in_chans
        self.name = name or type(body).__name__
        self.channels_last = False
        self.out_shape = self._probe()
        self.num_features = self.out_shape[0]

    def forward(self, x: Tensor) -> Tensor:
        "Images `(n, in_chans, height, width)` to feature maps `(n, C, H, W)`"
        f = self.body.forward_features(x) if hasattr(self.body, 'forward_features') else self.body(x)
        if f.ndim == 3: return self._tokens_as_map(f, x.shape[-2:])
        if f.ndim == 2: return f[..., None, None]
        return f.permute(0, 3, 1, 2) if self.channels_last else f

    def _tokens_as_map(self, tokens: Tensor, img_size: tuple[int, int]) -> Tensor:
        tokens = tokens[:, getattr(self.body, 'num_prefix_tokens', 0):]
        n = tokens.shape[1]
        grid = getattr(getattr(self.body, 'patch_embed', None), 'dynamic_feat_size', None)
        h, w = grid(img_size) if grid else (0, 0)
        # pooling transformers end with fewer tokens than patches
        if h * w != n: h = round(math.sqrt(n * img_size[0] / img_size[1])); w = n // max(h, 1)
        if h * w != n: raise ValueError(f'{self.name} gives {n} tokens, which do not form a map')
        return tokens.transpose(1, 2).unflatten(2, (h, w))

    @torch.no_grad()
    def _probe(self) -> tuple[int, int, int]:
        "The shape of the map of one training image"
        training, p = self.body.training, next(self.body.parameters(), torch.empty(0))
        x = torch.zeros(1, self.in_chans, self.img_size, self.img_size, device=p.device, dtype=p.dtype)
        try:
            self.body.eval()
            self.channels_last = getattr(self.body, 'output_fmt', 'NCHW') == 'NHWC'
            shape = tuple(self(x).shape[1:])
        except (RuntimeError, AssertionError, ValueError) as e:
            raise ValueError(f'{self.name} cannot encode images of {self.img_size}×{self.img_size} px ({e}). '
                             'Larger images, or a backbone that shrinks them less, may help') from e
        finally: self.body.train(training)
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f'{self.name} reduces images of {self.img_size}×{self.img_size} px to a map of shape {shape}: '
                             'use larger images, or a backbone that shrinks them less')
        return shape


def _timm_model(arch: str, pretrained: bool, img_size: int, in_chans: int, **kwargs: Any) -> nn.Module:
    "The timm model of that name without its classifier, built for `img_size` if it asks for a size at all"
    if ':' not in arch and not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(), 4)
        raise ValueError(f'No backbone is called {arch!r}. ' + (f'Nearest names: {", ".join(near)}' if near
                         else "`timm.list_models()` lists them all"))
    if pretrained and ':' not in arch and not timm.get_pretrained_cfg(arch, allow_unregistered=True).has_weights:
        raise ValueError(f'timm has no pretrained weights for {arch!r}: '
                         'pass `pretrained=` a checkpoint file or a state dict, or pre-train the encoder first')
    # models say only by a TypeError that they take no image size
    for size in ({'img_size': img_size, 'dynamic_img_size': True}, {'img_size': img_size}, {}):
        try: return timm.create_model(arch, pretrained=pretrained, in_chans=in_chans, num_classes=0, **{**size, **kwargs})
        except TypeError as e:
            if not any(f"'{k}'" in str(e) for k in size if k not in kwargs): raise
    raise AssertionError('unreachable: the last attempt passes no size')


def create_encoder(
    arch: str | nn.Module, # A timm name (`timm.list_models()`), or a module from images to maps
    pretrained: bool | str | Path | Mapping[str, Any] = False, # timm's weights, a checkpoint file, or a state dict of encoder weights
    img_size: int = 84, # Side of the training images
    in_chans: int = 3, # Channels of the images
    **kwargs: Any, # For `timm.create_model`
) -> Encoder:
    """An encoder by timm name, or around a module, with `num_features` and `out_shape` = (C, H, W).

    Raises `ValueError` for an unknown name (nearest names offered), for weights that do not exist or do not fit, and for an image
    size that the backbone cannot encode.
    """
    timm_weights = pretrained is True
    if isinstance(arch, nn.Module):
        if timm_weights: raise ValueError(f'{type(arch).__name__} is a module already: give it its weights before, or by name')
        encoder = Encoder(arch, img_size, in_chans)
    else: encoder = Encoder(_timm_model(arch, timm_weights, img_size, in_chans, **kwargs), img_size, in_chans, arch)
    if not isinstance(pretrained, bool):
        from .reference import load_encoder_weights
        load_encoder_weights(encoder, pretrained)
    return encoder
