"Loaders of single images, and their base class, which loaders of episodes share: images by position, with a cache"
from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from fastai.data.core import Datasets, TfmdDL
from fastai.data.load import DataLoader, SkipItemException
from fastai.torch_core import TensorCategory, no_random, to_device
from fastai.vision.augment import RandTransform, Resize, ResizeMethod
from fastcore.basics import chunked, defaults
from fasttransform.transform import Pipeline
from torch import Tensor
from torch.utils.data import get_worker_info

from .augment import MiddleResize
from .cache import CacheChoice, ImageCache
from .device_cache import DeviceCache, named_device
from .images import opener_of
from .size import Size, as_size

__all__ = ['CachedDL', 'ImageDL', 'check_any', 'has_labels']

_KNOWN = {*inspect.signature(DataLoader.__init__).parameters, *inspect.signature(TfmdDL.__init__).parameters,
          *DataLoader._methods} - {'self', 'kwargs'}


def _is_random(tfm: Any) -> bool:
    "Whether an item transform can give something else at its next call, or in another set"
    same = isinstance(tfm, MiddleResize) or isinstance(tfm, Resize) and tfm.method == ResizeMethod.Squish
    return not same and (isinstance(tfm, RandTransform) or tfm.split_idx is not None)


def _file_of(item: Any) -> str | os.PathLike | None:
    "The file of an item, None where it is something else"
    file = item[0] if isinstance(item, tuple) else item
    return file if isinstance(file, str | os.PathLike) else None


def _file_identity(file: Any) -> str:
    stat = os.stat(file)
    return f'{os.fspath(file)} {stat.st_size} {stat.st_mtime_ns}'


def _tfm_identity(tfm: Any) -> str:
    "Name of a transform and the arguments that it keeps"
    settings = {k: getattr(tfm, k) for k in inspect.signature(type(tfm).__init__).parameters if k in vars(tfm)}
    return f'{type(tfm).__module__}.{type(tfm).__qualname__} {tfm.name} {settings}'


def has_labels(
    dataset: Any, # A dataset of images
) -> bool:
    "Does a dataset return a class with each image?"
    return not isinstance(dataset, Datasets) or len(dataset.tls) > dataset.n_inp


def _read_labels(dataset: Any) -> np.ndarray:
    "The class of every item, without opening its image where the dataset allows"
    if isinstance(dataset, Datasets): labels: Iterable = dataset.tls[-1]
    elif hasattr(dataset, 'targets'): labels = dataset.targets
    else: labels = (dataset[i][1] for i in range(len(dataset)))
    return np.fromiter(map(int, labels), dtype=np.int64, count=len(dataset))


def check_any(
    dl: Any, # A loader
    to_do: str, # What the images are needed for, for the message
) -> None:
    "Raise `ValueError` for a loader without images"
    if not len(dl):
        raise ValueError(f'no images to {to_do}: a learner that was loaded comes without data, give it some (learn.dls = '
                         'EpisodeDataLoaders.from_folder(…)); where there is no validation set, hold classes out for it')


class CachedDL(TfmdDL):
    "The base class of `ImageDL` and `EpisodicDL`: images by position, from a cache if there is one"
    def __init__(self,
        dataset: Any = None, # Dataset of (image, class number)
        *,
        cache: CacheChoice | ImageCache = None, # Keep decoded images: True, GB, a folder, a device, False, None: where possible
        labels: list[int] | None = None, # Class of every image; None: read from the dataset
        img_shape: tuple[int, int, int] | None = None, # (channels, height, width); None: that of the first image
        num_workers: int | None = None, # None: 0 with a cache, fastai's default without; 0 with images on a device
        **kwargs, # For `TfmdDL`
    ):
        unknown = [k for k in kwargs if k not in _KNOWN and not k.startswith('val_')]
        if unknown: raise TypeError(f'{type(self).__name__} has no argument {", ".join(unknown)}')
        self._labels, self._img_shape, self.cache = labels, img_shape, None
        self._num_workers = num_workers
        opener_of(dataset)  # that fastai's images are opened as ours
        self._cache_wanted = cache.wanted if isinstance(cache, ImageCache) else cache
        super().__init__(dataset, num_workers=num_workers, **{k: v for k, v in kwargs.items() if k in _KNOWN})
        self.cache = self._make_cache(cache)
        if num_workers is None and self.cache is not None:
            self.fake_l.num_workers = 0  # an episode is one gather, which workers would only slow down

    def _make_cache(self, cache: CacheChoice | ImageCache) -> ImageCache | None:
        if isinstance(cache, ImageCache): return cache
        random_tfms = [f.name for f in self.after_item.fs if _is_random(f)]
        device = named_device(cache)
        folder = cache if isinstance(cache, str | os.PathLike) and device is None else None
        if (cache is True or folder is not None or device is not None) and random_tfms:
            raise ValueError(f'cache={cache} would freeze the random item_tfms {", ".join(random_tfms)}: '
                             'use Resize(size, method="squish"), and augment in batch_tfms')
        if cache is False or random_tfms or any(f.name != 'noop' for f in self.before_batch.fs): return None
        if folder is not None and all(_file_of(item) is not None for item in self.items):
            return ImageCache(len(self.dataset), folder=folder)
        if device is not None: return DeviceCache(len(self.dataset), device)
        limit = cache if isinstance(cache, int | float) and cache is not True else None
        return ImageCache(len(self.dataset), limit)

    def build_cache(self,
        progress: bool = True, # Show a progress bar
    ) -> bool:
        """Decode all images now, not when first used. Returns whether they can be kept.

        They are kept in memory by default, and with `cache=folder` in a file, which is always built before its first use.
        """
        super().before_iter()
        return self.cache is not None and self.cache.build(self._load_image, self._identity, progress)

    def _identity(self) -> str:
        "What the images are made of: the files as they are now, and the transforms with their settings"
        files = [_file_identity(_file_of(item)) for item in self.items]
        tfms = [*(self.dataset.tls[0].tfms.fs if isinstance(self.dataset, Datasets) else ()), *self.after_item.fs]
        return '\n'.join([*files, type(self.dataset).__qualname__, *map(_tfm_identity, tfms)])

    @property
    def labels(self) -> list[int]:
        "The class of every image, as its number in `vocab`"
        if self._labels is None: self._labels = _read_labels(self.dataset).tolist()
        return self._labels

    @property
    def items(self) -> Sequence:
        "The items of the dataset, usually files, or else the positions of its images"
        return getattr(self.dataset, 'items', range(len(self.dataset)))

    @property
    def files(self) -> list[str | os.PathLike]:
        "The items that are files"
        return [f for f in map(_file_of, self.items) if f is not None]

    @property
    def vocab(self) -> Sequence:
        "Names of the classes"
        names = getattr(self.dataset, 'vocab', None)
        if names is None: names = getattr(self.dataset, 'classes', None)
        return names if names is not None else list(map(str, range(self.n_classes)))

    @property
    def n_classes(self) -> int:
        "Number of classes, one more than the highest"
        return max(self.labels, default=-1) + 1

    @property
    def img_shape(self) -> tuple[int, int, int]:
        "(channels, height, width) of the images that the model sees"
        if self._img_shape is None:
            with no_random():
                self._choose_tfms()
                x = self.do_batch([self.do_item(0)])[0]
                self._img_shape = tuple(self.after_batch(x if self.device is None else to_device(x, self.device)).shape[1:])
        return self._img_shape

    @property
    def img_size(self) -> Size:
        "Side of the images that the model sees, or (height, width) if they are not square"
        return as_size('img_size', self.img_shape[1:])

    @property
    def n_chans(self) -> int:
        "Channels of the images that the model sees: 3, or 1 for grey images"
        return self.img_shape[0]

    def _pipelines(self) -> tuple[Pipeline, ...]: return self.after_item, self.before_batch, self.after_batch

    def _choose_tfms(self) -> None:
        "The transforms of training or of validation, in every pipeline"
        super().before_iter()
        if (getattr(self.dataset, 'split_idx', None) or 0) > 1:  # a test set: fastai knows the transforms of two sets only
            for pipeline in self._pipelines(): pipeline.split_idx = 1

    def before_iter(self):
        self._choose_tfms()
        if self.cache is None: return
        self.cache.prepare(self._load_image, self._identity)
        if not self.cache.takes_workers: self.fake_l.num_workers = 0

    def do_item(self, s):
        "Item `s` after its transforms; `SkipItemException` is an error, since an episode needs all its images"
        try: return self.after_item(self.create_item(s))
        except SkipItemException as e:
            raise RuntimeError(f'a transform skips {self._describe(s)}, but an episode has a fixed number of images: '
                               'leave it out of the items') from e
        except OSError as e:
            named = self._describe(s)
            if named in str(e): raise
            raise OSError(f'{named} cannot be read as an image: {e}') from e

    def _describe(self, i: int) -> str:
        item = self.items[i or 0]
        return str(item[0] if isinstance(item, tuple) else item)

    def _load_image(self, i: int) -> Tensor: return self.do_item(i)[0]

    def _batch(self, idxs: list[int]) -> Tensor:
        "The images at `idxs` as one batch, before the batch transforms"
        if self.cache is not None and self.cache.prepare(self._load_image, self._identity):
            return self.cache.get(idxs, self._load_image, pinned=self._sends)
        return self.do_batch([self.do_item(i) for i in idxs])[0]

    @property
    def _sends(self) -> bool:
        "Whether batches leave for a CUDA device as they are made: not from forked workers, where CUDA is out of reach"
        on_cuda = self.device is not None and self.device.type == 'cuda' and defaults.use_cuda is not False
        return on_cuda and get_worker_info() is None and not self.pin_memory  # which torch would do to what it is given

    def _sent(self, *b: Tensor) -> tuple[Tensor, ...]:
        "A batch, where `_sends` on its way to the device through pinned memory, so that the host does not wait for it"
        if not self._sends: return b
        return tuple(to_device(o.pin_memory(), self.device, non_blocking=True) if o.device.type == 'cpu' else o for o in b)

    @property
    def _cache_for_others(self) -> CacheChoice:
        "What a loader on other images is told: not of a device that the machine lacks to which a learner has been brought"
        try: named_device(self._cache_wanted)
        except ValueError: return None
        return self._cache_wanted

    def _shared(self, dataset: Any) -> dict:
        "What a new loader on `dataset` takes over from this one"
        same = dataset is None or dataset is self.dataset
        shared = dict(num_workers=self._num_workers, img_shape=self._img_shape, cache=self._cache_for_others)
        return shared | dict(labels=self._labels, cache=False if self.cache is None else self.cache) if same else shared


class ImageDL(CachedDL):
    """Batches `(images, class numbers)` of single images, or `(images,)` if the dataset has no labels."""
    def __init__(self,
        dataset: Any = None, # Dataset of (image, class number)
        bs: int = 64, # Images per batch
        shuffle: bool = False, # Draw a new order in each pass
        *,
        idxs: Sequence[int] | None = None, # Positions of the images to use; None: all
        split_idx: int = 1, # Transforms of training (0) or of validation (1)
        **kwargs, # For `TfmdDL`
    ):
        self.idxs, self.split_idx = idxs, split_idx
        super().__init__(dataset, bs=bs, shuffle=shuffle, **(kwargs | dict(n=len(dataset if idxs is None else idxs))))

    def get_idxs(self):
        idxs = list(range(len(self.dataset)) if self.idxs is None else self.idxs)
        return self.shuffle_fn(idxs) if self.shuffle else idxs

    def create_batches(self, samps: Iterable[int]) -> Iterator[tuple]:
        for idxs in chunked(samps, self.bs, self.drop_last):
            y = (TensorCategory([self.labels[i] for i in idxs]),) if has_labels(self.dataset) else ()
            yield self._sent(self._batch(idxs), *y)

    def before_iter(self):
        super().before_iter()
        for pipeline in self._pipelines(): pipeline.split_idx = self.split_idx

    def new(self, dataset: Any = None, cls: Any = None, **kwargs) -> ImageDL:
        "A loader of another dataset or with other settings"
        own: dict[str, Any] = dict(split_idx=self.split_idx)
        if dataset is None or dataset is self.dataset: own['idxs'] = self.idxs
        return super().new(dataset, cls, **(self._shared(dataset) | own | kwargs))
