"From an image of any kind to what the encoder takes, always in the same way"
from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np
import torch
from fastai.data.core import Datasets
from fastai.data.transforms import ItemGetter, Normalize, ToTensor
from fastai.torch_core import default_device
from fastai.vision.augment import Resize
from fastai.vision.core import PILImage, imagenet_stats
from fastcore.basics import chunked, defaults
from PIL import Image
from torch import Tensor

from ..data.augment import BytesToFloat, CenterCrop, InplaceNormalize
from ..data.block import EpisodeCategorize
from ..data.images import OpenImage, open_image, opener_of
from ..data.loader import EpisodicDL
from ..data.loaders import EpisodeDataLoaders

__all__ = ['Preprocess', 'MAX_SIDE']

Fit = Literal['squish', 'crop', 'pad']
MAX_SIDE = 4096


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f'{name}={value!r:.60}: wanted a whole number of pixels')
    return int(value)


def _of_channels(name: str, values: Any, low: float) -> tuple[float, ...]:
    "Three numbers from `low` to 1e4, beyond which 32 bits hold no pixel"
    numbers = tuple(values) if isinstance(values, list | tuple) else ()
    real = len(numbers) == 3 and all(isinstance(o, Real) and not isinstance(o, bool) for o in numbers)
    if not real or not all(low <= o <= 1e4 for o in numbers):
        raise ValueError(f'{name}={str(values)[:100]}: wanted three numbers from {low:g} to 1e4')
    return tuple(map(float, numbers))


def _shrunk(im: Image.Image) -> Image.Image:
    "An image of at most `MAX_SIDE` px a side, in its proportions: what is padded to a square grows to that of its longer side"
    scale = MAX_SIDE / max(im.size)
    if scale >= 1: return im
    return im.resize([max(1, round(scale * o)) for o in im.size], Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Preprocess:
    """Resize to a square, take its middle, normalise: the transforms of validation, as plain values that can be saved.

    `Preprocess(...)(images)` gives `(n, 3, size, size)`. Raises `ValueError` for sizes and statistics that make no sense.
    """
    size: int = 84 # Side of the images that the encoder sees
    resize: int = 0 # Side of the square before its middle is cut out; 0: 1.15·size
    fit: Fit = 'squish' # How an image becomes a square: as fastai's `Resize`
    mean: tuple[float, ...] = tuple(imagenet_stats[0]) # Of the channels
    std: tuple[float, ...] = tuple(imagenet_stats[1]) # Of the channels
    orient: bool = True # Turn images as their EXIF orientation says
    white: float | None = None # What is white in samples other than bytes; None: what their type says

    def __post_init__(self):
        for name in ('size', 'resize'): object.__setattr__(self, name, _whole(name, getattr(self, name)))
        if not self.resize: object.__setattr__(self, 'resize', int(1.15 * self.size))
        if not 1 <= self.size <= self.resize <= MAX_SIDE:
            raise ValueError(f'size={self.size}, resize={self.resize}: wanted 1 ≤ size ≤ resize ≤ {MAX_SIDE}')
        if self.fit not in get_args(Fit): raise ValueError(f'fit={self.fit!r:.60}: choose from {get_args(Fit)}')
        object.__setattr__(self, 'mean', _of_channels('mean', self.mean, -1e4))
        object.__setattr__(self, 'std', _of_channels('std', self.std, 1e-4))
        if not isinstance(self.orient, bool): raise ValueError(f'orient={self.orient!r:.60}: True or False')
        if self.white is not None and (type(self.white) not in (int, float) or not 1e-6 <= self.white <= 1e12):
            raise ValueError(f'white={str(self.white)[:40]}: wanted a number from 1e-6 to 1e12, or None')

    @classmethod
    def from_dls(cls, dls: EpisodeDataLoaders) -> Preprocess:
        """The validation transforms of `dls`.

        Raises `ValueError` where these do more than resize, cut and normalise: pass a `Preprocess` of your own then.
        """
        tfms = [*dls.valid.after_item.fs, *dls.valid.after_batch.fs]
        found: dict[str, Any] = dict(size=dls.img_size, resize=dls.img_size)
        if opener := opener_of(dls.valid.dataset): found |= dict(orient=opener.orient, white=opener.white)
        for tfm in tfms:
            if isinstance(tfm, Resize): found |= dict(resize=tfm.size[0], fit=tfm.method)
            if isinstance(tfm, Normalize): found |= dict(mean=tfm.mean.flatten().tolist(), std=tfm.std.flatten().tolist())
            if isinstance(tfm, CenterCrop): found['size'] = tfm.size
        if not any(isinstance(tfm, Normalize) for tfm in tfms): found |= dict(mean=(0, 0, 0), std=(1, 1, 1))
        return cls(**found)._checked(dls)

    def loaders(self,
        device: str | torch.device | None = None, # None: fastai's default
    ) -> EpisodeDataLoaders:
        "Loaders without images whose transforms of validation these are, to test on domains and to take examples"
        tfms = [[ItemGetter(0), OpenImage(self.orient, self.white)], [ItemGetter(1), EpisodeCategorize]]
        # fastai asks an item what it takes for images
        dsets = Datasets([(Image.new('RGB', (1, 1)), 'none')], tfms=tfms, splits=[[0], [0]])
        settings: dict[str, Any] = dict(
            after_item=[Resize(self.resize, method=self.fit), ToTensor], img_size=self.size,
            after_batch=[BytesToFloat, CenterCrop(self.size), InplaceNormalize.from_stats(self.mean, self.std, cuda=False)])
        loaders = [EpisodicDL(dsets.subset(i), **settings) for i in range(2)]
        return EpisodeDataLoaders(*(dl.new(dsets.new_empty()) for dl in loaders), device=device or default_device())

    def _checked(self, dls: EpisodeDataLoaders) -> Preprocess:
        "Itself, after comparing with the loaders on an image whose every pixel differs"
        probe = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2 * self.size, 3 * self.size, 3), dtype=np.uint8))
        wanted = dls.test_images([probe]).one_batch()[0].as_subclass(Tensor).cpu()
        ours = self([probe])
        if wanted.shape != ours.shape or not torch.allclose(wanted, ours, atol=1e-4):
            names = ', '.join(f.name for f in [*dls.valid.after_item.fs, *dls.valid.after_batch.fs])
            raise ValueError(f'The transforms of these loaders ({names}) do more than resize, cut out the middle and normalise: '
                             'pass preprocess=Preprocess(...) with what comes closest')
        return self

    def image(self, item: Any) -> PILImage:
        "What the encoder sees of an image of any kind, still a picture of `size` × `size`"
        im = open_image(item, self.orient, self.white)
        if self.fit == 'pad': im = _shrunk(im)
        squared = Resize(self.resize, method=self.fit)(im, split_idx=1)
        start = (self.resize - self.size) // 2
        return squared.crop((start, start, start + self.size, start + self.size))

    def pixels(self, item: Any) -> Tensor:
        "`image` as bytes `(3, size, size)`"
        return torch.from_numpy(np.array(self.image(item))).permute(2, 0, 1)

    def normalise(self, pixels: Tensor) -> Tensor:
        "Bytes `(n, 3, size, size)` to what the encoder takes, in the same shape"
        mean, std = (torch.tensor(o, device=pixels.device).view(3, 1, 1) for o in (self.mean, self.std))
        return (pixels / 255).sub_(mean).div_(std)

    def batches(self,
        items: Iterable[Any], # Files, bytes, PIL images, arrays or tensors
        bs: int = 64, # Images a batch
    ) -> Iterator[Tensor]:
        "Bytes `(bs, 3, size, size)`, opened in threads"
        with ThreadPoolExecutor(min(8, defaults.cpus)) as pool:
            for chunk in chunked(items, bs): yield torch.stack(list(pool.map(self.pixels, chunk)))

    def __call__(self, items: Iterable[Any]) -> Tensor:
        "All images at once `(n, 3, size, size)`"
        return torch.cat([self.normalise(o) for o in self.batches(items)])
