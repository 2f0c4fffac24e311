"Preprocessing of images: from an image of any kind to the input of the encoder"
from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
import torch
from fastai.data.core import Datasets
from fastai.data.transforms import ItemGetter, ToTensor
from fastai.torch_core import default_device
from fastai.vision.augment import Resize
from fastai.vision.core import PILBase, imagenet_stats
from fastcore.basics import chunked, defaults
from PIL import Image
from torch import Tensor, nn

from ..data.augment import BytesToFloat, CenterCrop, InplaceNormalize, as_grey
from ..data.block import EpisodeCategorize
from ..data.episode_loader import EpisodicDL
from ..data.image_config import ImageConfig, resampling
from ..data.images import OpenImage, open_image, opener_of
from ..data.loaders import EpisodeDataLoaders
from ..data.size import Box, Size, as_size, resized_box, sides, with_margin

__all__ = ['Preprocess', 'MAX_SIDE']

Fit = Literal['squish', 'crop', 'pad']
MAX_SIDE = 4096


def _of_pixels(name: str, value: Any) -> Size:
    "A side or (height, width), from 1 to `MAX_SIDE`"
    try: size = as_size(name, value)
    except TypeError as e: raise ValueError(str(e)) from e
    if max(sides(size)) > MAX_SIDE: raise ValueError(f'{name}={size}: wanted at most {MAX_SIDE}')
    return size


def _of_channels(name: str, values: Any, low: float) -> tuple[float, ...]:
    "Three numbers, one for grey, from `low` to 1e4, beyond which 32 bits hold no pixel"
    numbers = tuple(values) if isinstance(values, list | tuple) else ()
    real = len(numbers) in (1, 3) and all(isinstance(o, Real) and not isinstance(o, bool) for o in numbers)
    if not real or not all(low <= o <= 1e4 for o in numbers):
        raise ValueError(f'{name}={str(values)[:100]}: wanted three numbers, or one for grey, from {low:g} to 1e4')
    return tuple(map(float, numbers))


def _shrunk(im: Image.Image) -> Image.Image:
    "An image of at most `MAX_SIDE` px a side, in its proportions: what is padded to a square grows to that of its longer side"
    scale = MAX_SIDE / max(im.size)
    if scale >= 1: return im
    return im.resize([max(1, round(scale * o)) for o in im.size], Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop the middle, normalise: the transforms of validation as plain values that can be saved.

    `Preprocess(...)(images)` returns `(n, channels, height, width)`; images become grey if there is only one mean and std.
    Raises `ValueError` for impossible sizes and statistics.
    """
    size: Size = 84 # Side of the images that the encoder sees, or (height, width)
    resize: Size = 0 # Side, or (height, width), of images before the middle is cropped; 0: 1.15·size
    fit: Fit = 'squish' # How images are resized to that shape, as in fastai's `Resize`: 'squish', 'crop' or 'pad'
    mean: tuple[float, ...] = tuple(imagenet_stats[0]) # Means of the channels
    std: tuple[float, ...] = tuple(imagenet_stats[1]) # Standard deviations of the channels
    orient: bool = True # Turn images as their EXIF orientation says
    white: float | None = None # The value of white in samples that are no bytes; None: as their type says
    interpolation: str = 'bilinear' # Filter of the resize: 'bilinear', 'bicubic', 'lanczos', 'nearest', 'box', 'hamming'

    def __post_init__(self):
        size = _of_pixels('size', self.size)
        resize = with_margin(size) if type(self.resize) is int and not self.resize else _of_pixels('resize', self.resize)
        if not all(a <= b for a, b in zip(sides(size), sides(resize), strict=True)):
            raise ValueError(f'size={size}, resize={resize}: wanted 1 ≤ size ≤ resize ≤ {MAX_SIDE}')
        if self.fit not in get_args(Fit): raise ValueError(f'fit={self.fit!r:.60}: choose from {get_args(Fit)}')
        mean, std = _of_channels('mean', self.mean, -1e4), _of_channels('std', self.std, 1e-4)
        if len(mean) != len(std): raise ValueError(f'mean={mean}, std={std}: wanted as many of one as of the other')
        for name, value in dict(size=size, resize=resize, mean=mean, std=std).items(): object.__setattr__(self, name, value)
        resampling(self.interpolation)
        if not isinstance(self.orient, bool): raise ValueError(f'orient={self.orient!r:.60}: True or False')
        if self.white is not None and (type(self.white) not in (int, float) or not 1e-6 <= self.white <= 1e12):
            raise ValueError(f'white={str(self.white)[:40]}: wanted a number from 1e-6 to 1e12, or None')

    @property
    def shape(self) -> tuple[int, int, int]:
        "(channels, height, width) of the encoder's input"
        return len(self.mean), *sides(self.size)

    @classmethod
    def from_backbone(cls,
        arch: str | nn.Module, # A timm name, or a model of timm's
        size: Size | None = None, # Size of the images; None: that of the training
    ) -> Preprocess:
        "The preprocessing that the weights of a backbone were trained with. Raises `ValueError` for an unknown name"
        return cls(**ImageConfig.of(arch).at(size).preprocess)

    @classmethod
    def from_dls(cls, dls: EpisodeDataLoaders) -> Preprocess:
        """The validation transforms of `dls`.

        Raises `ValueError` if these do more than resize, crop and normalise; pass your own `Preprocess` then.
        """
        tfms = [*dls.valid.after_item.fs, *dls.valid.after_batch.fs]
        found: dict[str, Any] = dict(size=dls.img_size, resize=dls.img_size, **dict(zip(('mean', 'std'), dls.statistics)))
        if opener := opener_of(dls.valid.dataset): found |= dict(orient=opener.orient, white=opener.white)
        for tfm in tfms:
            if isinstance(tfm, Resize):  # fastai: (width, height)
                found |= dict(resize=tuple(tfm.size[::-1]), fit=tfm.method, interpolation=Image.Resampling(tfm.mode).name.lower())
            if isinstance(tfm, CenterCrop): found['size'] = tfm.size
        names = ', '.join(type(f).__name__ for f in tfms)
        try: return cls(**found)._checked(dls)
        except ValueError as e:
            raise ValueError(f'the transforms of these loaders ({names}) are none that a classifier can keep: {e}. Resize, '
                             'CenterCrop and Normalize are; or pass preprocess=Preprocess(…) with what comes closest') from e

    def loaders(self,
        device: str | torch.device | None = None, # None: fastai's default
    ) -> EpisodeDataLoaders:
        "Loaders without images that have this preprocessing as their validation transforms"
        grey = [as_grey] if self.shape[0] == 1 else []
        tfms = [[ItemGetter(0), OpenImage(self.orient, self.white), *grey], [ItemGetter(1), EpisodeCategorize]]
        # fastai asks an item what it takes for images
        dsets = Datasets([(Image.new('RGB', (1, 1)), 'none')], tfms=tfms, splits=[[0], [0]])
        settings: dict[str, Any] = dict(
            after_item=[self._resize, ToTensor], img_shape=self.shape,
            after_batch=[BytesToFloat, CenterCrop(self.size), InplaceNormalize.from_stats(self.mean, self.std, cuda=False)])
        loaders = [EpisodicDL(dsets.subset(i), **settings) for i in range(2)]
        return EpisodeDataLoaders(*(dl.new(dsets.new_empty()) for dl in loaders), device=device or default_device())

    def _checked(self, dls: EpisodeDataLoaders) -> Preprocess:
        "Itself, after comparing with the loaders on an image whose every pixel differs"
        height, width = sides(self.size)
        pixels = np.random.default_rng(0).integers(0, 256, (2 * height, 3 * width, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, 'png')  # as a file, which loaders of grey images open in grey
        wanted = dls.test_images([file.getvalue()]).one_batch()[0].as_subclass(Tensor).cpu()
        ours = self([file.getvalue()])
        if wanted.shape != ours.shape or not torch.allclose(wanted, ours, atol=1e-4):
            raise ValueError('they do more than resize, cut out the middle and normalise')
        return self

    def open(self, item: Any) -> PILBase:
        "An image of any kind as a PIL image, before it is cropped and resized"
        return open_image(item, self.orient, self.white)

    def box(self,
        im: Image.Image, # An image that `open` returned
    ) -> Box:
        "The box that the encoder sees, in pixels of the image; it reaches beyond the edges of a padded image"
        return resized_box(im.size, sides(self.resize)[::-1], self.fit, self.size)

    @property
    def _resize(self) -> Resize:
        return Resize(self.resize, method=self.fit, resamples=(resampling(self.interpolation), Image.Resampling.NEAREST))

    def image(self, item: Any) -> PILBase:
        "The part of an image that the encoder sees, as a PIL image"
        im = self.open(item)
        if self.shape[0] == 1: im = as_grey(im)
        if self.fit == 'pad': im = _shrunk(im)
        resized = self._resize(im, split_idx=1)
        (height, width), (whole_height, whole_width) = sides(self.size), sides(self.resize)
        left, top = (whole_width - width) // 2, (whole_height - height) // 2
        return resized.crop((left, top, left + width, top + height))

    def pixels(self, item: Any) -> Tensor:
        "`image` as bytes `(channels, height, width)`"
        return torch.from_numpy(np.atleast_3d(np.array(self.image(item)))).permute(2, 0, 1)

    def normalise(self, pixels: Tensor) -> Tensor:
        "Normalise bytes `(n, channels, height, width)` to the input of the encoder, in the same shape"
        mean, std = (torch.tensor(o, device=pixels.device).view(-1, 1, 1) for o in (self.mean, self.std))
        return (pixels / 255).sub_(mean).div_(std)

    def batches(self,
        items: Iterable[Any], # Files, bytes, PIL images, arrays or tensors
        bs: int = 64, # Images per batch
    ) -> Iterator[Tensor]:
        "Yield batches of bytes `(bs, channels, height, width)`, opened in threads"
        with ThreadPoolExecutor(min(8, defaults.cpus)) as pool:
            for chunk in chunked(items, bs): yield torch.stack(list(pool.map(self.pixels, chunk)))

    def __call__(self, items: Iterable[Any]) -> Tensor:
        "The input of the encoder for all images `(n, channels, height, width)`"
        return torch.cat([self.normalise(o) for o in self.batches(items)])
