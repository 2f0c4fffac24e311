"The images that a backbone was trained on, from timm's configuration of its weights"
from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor, isclose
from typing import Any

import timm
from PIL import Image
from timm.data import resolve_data_config
from torch import nn

from ..nearest import unknown
from .size import Size, as_size, sides, size_text

__all__ = ['ImageConfig', 'configuration', 'resampling', 'statistics_text']

FITS = {'center': 'crop', 'squash': 'squish', 'border': 'pad'} # timm's words for a resize, in fastai's


def resampling(
    name: str, # 'bilinear', 'bicubic', 'lanczos', 'nearest', 'box' or 'hamming'
) -> Image.Resampling:
    "PIL's filter of that name. Raises `ValueError` for another"
    known = {o.name.lower(): o for o in Image.Resampling}
    if not isinstance(name, str) or name not in known:
        raise ValueError(f'interpolation={str(name)[:40]!r}: choose from {", ".join(known)}')
    return known[name]


def configuration(
    arch: str, # A timm name, with or without the tag of its weights
) -> Any:
    "timm's configuration of a backbone's weights, or None. Raises `ValueError` for an unknown name or tag"
    if not timm.is_model(arch): raise unknown('backbone', arch, timm.list_models(), '`timm.list_models()` lists them all')
    try: return timm.get_pretrained_cfg(arch)
    except RuntimeError as e:
        tagged = timm.list_pretrained(f'{arch.partition(".")[0]}.*')
        raise unknown('weights of a backbone', arch, tagged) from e


@dataclass(frozen=True)
class ImageConfig:
    """Size, cut, interpolation and statistics of the images that weights were trained on.

        ImageConfig.of('vit_small_patch14_dinov2.lvd142m')
    """
    size: Size # Size of the backbone's input
    mean: tuple[float, ...] # Means of the channels
    std: tuple[float, ...] # Standard deviations of the channels
    crop_pct: float = .875 # Share of the resized image that is cropped from its middle
    fit: str = 'crop' # How images are resized, as in fastai's `Resize`
    interpolation: str = 'bilinear' # Filter of the resize, see `resampling`
    fixed: bool = False # The network takes only images of this size, unless it was built to be flexible

    @classmethod
    def of(cls,
        arch: str | nn.Module | dict[str, Any], # A timm name, with the tag of the weights if you like; or a model of timm's
    ) -> ImageConfig:
        "Of the weights of a backbone. Raises `ValueError` for an unknown name, and for a module that says nothing of its images"
        found = arch if isinstance(arch, dict) else getattr(getattr(arch, 'body', arch), 'pretrained_cfg', None)
        if isinstance(arch, str): found = configuration(arch)
        if not found:
            raise ValueError(f'nothing says what images {arch if isinstance(arch, str) else type(arch).__name__} was trained on: '
                             "a backbone of timm's has a `pretrained_cfg`")
        if not isinstance(found, dict): found = found.to_dict()
        values = resolve_data_config(pretrained_cfg=found)
        interpolation = values['interpolation'] if values['interpolation'] != 'random' else 'bicubic'
        return cls(as_size('size', values['input_size'][1:]), tuple(values['mean']), tuple(values['std']), values['crop_pct'],
                   FITS[values['crop_mode']], interpolation, bool(found.get('fixed_input_size')))

    def at(self,
        size: Size | None, # Another size of the images; None: their own
    ) -> ImageConfig:
        "The same configuration for images of another size"
        return self if size is None else replace(self, size=as_size('size', size))

    @property
    def resize(self) -> Size:
        "The size of images before the middle is cropped"
        return as_size('resize', [floor(side / self.crop_pct) for side in sides(self.size)])

    @property
    def preprocess(self) -> dict[str, Any]:
        "The arguments of `Preprocess`"
        return dict(size=self.size, resize=self.resize, fit=self.fit, mean=self.mean, std=self.std,
                    interpolation=self.interpolation)

    def other_statistics(self,
        mean: tuple[float, ...], # Means of the channels
        std: tuple[float, ...], # Standard deviations of the channels
    ) -> bool:
        "Do these statistics differ from the configured ones? False for another number of channels"
        pairs = [*zip(self.mean, mean), *zip(self.std, std)] if len(mean) == len(self.mean) else []
        return not all(isclose(a, b, abs_tol=1e-3) for a, b in pairs)

    def __str__(self) -> str: return f'{size_text(self.size)}, {statistics_text(self.mean, self.std)}'


def statistics_text(
    mean: tuple[float, ...], # Means of the channels
    std: tuple[float, ...], # Standard deviations of the channels
) -> str:
    """Statistics as a short text.

    >>> statistics_text((.5, .5, .5), (.25, .25, .25))
    'mean (0.5, 0.5, 0.5), std (0.25, 0.25, 0.25)'
    """
    written = [f'({", ".join(f"{o:.4g}" for o in values)})' for values in (mean, std)]
    return f'mean {written[0]}, std {written[1]}'
