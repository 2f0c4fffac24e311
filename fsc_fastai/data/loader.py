"Loaders of episodes and of single images, over one dataset and one image cache"
from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from fastai.data.core import Datasets, TfmdDL
from fastai.data.load import DataLoader, SkipItemException
from fastai.torch_core import TensorCategory, TensorImage, no_random, to_cpu, to_device
from fastai.vision.augment import RandTransform, Resize, ResizeMethod
from fastcore.basics import chunked, defaults
from fastcore.foundation import L
from fasttransform.transform import Pipeline
from torch import Tensor
from torch.utils.data import get_worker_info

from .cache import CacheChoice, ImageCache
from .episode import Episode, EpisodeLabel, EpisodeSplit
from .image_files import same_files
from .images import opener_of
from .sampler import Count, EpisodeSampler, check_whole
from .size import Size, as_size

__all__ = ['ImageDL', 'EpisodicDL', 'check_any']

_KNOWN = {*inspect.signature(DataLoader.__init__).parameters, *inspect.signature(TfmdDL.__init__).parameters,
          *DataLoader._methods} - {'self', 'kwargs'}


def _is_random(tfm: Any) -> bool:
    "Whether an item transform can give something else at its next call, or in another set"
    squish = isinstance(tfm, Resize) and tfm.method == ResizeMethod.Squish
    return not squish and (isinstance(tfm, RandTransform) or tfm.split_idx is not None)


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


def _has_labels(dataset: Any) -> bool: return not isinstance(dataset, Datasets) or len(dataset.tls) > dataset.n_inp


def _read_labels(dataset: Any) -> np.ndarray:
    "The class of every item, without opening its image where the dataset allows"
    if isinstance(dataset, Datasets): labels: Iterable = dataset.tls[-1]
    elif hasattr(dataset, 'targets'): labels = dataset.targets
    else: labels = (dataset[i][1] for i in range(len(dataset)))
    return np.fromiter(map(int, labels), dtype=np.int64, count=len(dataset))


def check_any(
    dl: Any, # A loader
    to_do: str, # What its images are wanted for
) -> None:
    "`ValueError` for a loader without images"
    if not len(dl):
        raise ValueError(f'no images to {to_do}: a learner that was loaded comes without data, give it some (learn.dls = '
                         'EpisodeDataLoaders.from_folder(…)); where there is no validation set, hold classes out for it')


def _with_split(after_batch: Pipeline) -> Pipeline:
    "The batch transforms, with `EpisodeSplit` the last of them"
    if not any(isinstance(f, EpisodeSplit) for f in after_batch.fs): after_batch.add(EpisodeSplit())
    return after_batch


class _CachedDL(TfmdDL):
    "What `ImageDL` and `EpisodicDL` share: images by their position, through the cache where there is one"
    def __init__(self, dataset=None, *, cache=None, labels=None, img_shape=None, num_workers=None, **kwargs):
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
        folder = cache if isinstance(cache, str | os.PathLike) else None
        if (cache is True or folder is not None) and random_tfms:
            raise ValueError(f'cache={cache} would freeze the random item_tfms {", ".join(random_tfms)}: '
                             'use Resize(size, method="squish"), and augment in batch_tfms')
        if cache is False or random_tfms or any(f.name != 'noop' for f in self.before_batch.fs): return None
        if folder is not None and all(_file_of(item) is not None for item in self.items):
            return ImageCache(len(self.dataset), folder=folder)
        limit = cache if isinstance(cache, int | float) and cache is not True else None
        return ImageCache(len(self.dataset), limit)

    def build_cache(self,
        progress: bool = True, # Show a progress bar
    ) -> bool:
        """Decode every image now, instead of at its first use; whether they could be kept.

        In memory by default; with `cache=folder` in a file that is built in any case before its first use.
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
    def items(self) -> Sequence: return getattr(self.dataset, 'items', range(len(self.dataset)))

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
    def n_classes(self) -> int: return max(self.labels, default=-1) + 1

    @property
    def img_shape(self) -> tuple[int, int, int]:
        "(channels, height, width) of the images that the model sees; found on the first one, without a trace in random numbers"
        if self._img_shape is None:
            with no_random():
                self._choose_tfms()
                x = self.do_batch([self.do_item(0)])[0]
                self._img_shape = tuple(self.after_batch(x if self.device is None else to_device(x, self.device)).shape[1:])
        return self._img_shape

    @property
    def img_size(self) -> Size:
        "Side of the images that the model sees, or (height, width) where they are not square"
        return as_size('img_size', self.img_shape[1:])

    @property
    def n_chans(self) -> int:
        "Channels of the images that the model sees: 3, or 1 where they are grey"
        return self.img_shape[0]

    def _pipelines(self) -> tuple[Pipeline, ...]: return self.after_item, self.before_batch, self.after_batch

    def _choose_tfms(self) -> None:
        "The transforms of training or of validation, in every pipeline"
        super().before_iter()
        if (getattr(self.dataset, 'split_idx', None) or 0) > 1:  # a test set: fastai knows the transforms of two sets only
            for pipeline in self._pipelines(): pipeline.split_idx = 1

    def before_iter(self):
        self._choose_tfms()
        if self.cache is not None: self.cache.prepare(self._load_image, self._identity)

    def do_item(self, s):
        "Item `s` after its transforms. An episode cannot do without one of its images: `SkipItemException` is an error"
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
        return tuple(to_device(o.pin_memory(), self.device, non_blocking=True) for o in b) if self._sends else b

    def _shared(self, dataset: Any) -> dict:
        "What a new loader on `dataset` takes over from this one"
        same = dataset is None or dataset is self.dataset
        shared = dict(num_workers=self._num_workers, img_shape=self._img_shape, cache=self._cache_wanted)
        return shared | dict(labels=self._labels, cache=False if self.cache is None else self.cache) if same else shared


class ImageDL(_CachedDL):
    """Batches `(images, class numbers)` of single images, or `(images,)` where the dataset has no labels.

    `split_idx` decides between the transforms of training (0) and of validation (1).
    """
    def __init__(self,
        dataset: Any = None, # Dataset of (image, class number)
        bs: int = 64, # Images per batch
        shuffle: bool = False, # Another order at each pass
        *,
        idxs: Sequence[int] | None = None, # Positions of the images to use; None: all
        split_idx: int = 1, # Whose transforms: 0 training, 1 validation
        **kwargs, # For `TfmdDL`
    ):
        self.idxs, self.split_idx = idxs, split_idx
        super().__init__(dataset, bs=bs, shuffle=shuffle, **(kwargs | dict(n=len(dataset if idxs is None else idxs))))

    def get_idxs(self):
        idxs = list(range(len(self.dataset)) if self.idxs is None else self.idxs)
        return self.shuffle_fn(idxs) if self.shuffle else idxs

    def create_batches(self, samps: Iterable[int]) -> Iterator[tuple]:
        for idxs in chunked(samps, self.bs, self.drop_last):
            y = (TensorCategory([self.labels[i] for i in idxs]),) if _has_labels(self.dataset) else ()
            yield self._sent(self._batch(idxs), *y)

    def before_iter(self):
        super().before_iter()
        for pipeline in self._pipelines(): pipeline.split_idx = self.split_idx

    def new(self, dataset: Any = None, cls: Any = None, **kwargs) -> ImageDL:
        "The same on another dataset, all of it, or with other settings"
        own: dict[str, Any] = dict(split_idx=self.split_idx)
        if dataset is None or dataset is self.dataset: own['idxs'] = self.idxs
        return super().new(dataset, cls, **(self._shared(dataset) | own | kwargs))


class EpisodicDL(_CachedDL):
    """Loads `Episode`s: `n_way` classes with `n_shot` support and `n_query` query images each.

    The k-th episode depends on (seed, epoch, k) alone, whatever the workers and ranks. With `shuffle`, as in training, each pass
    is an epoch of new episodes; without, as in validation, each pass repeats the same ones. A look at the first episode
    (`one_batch`, `show_batch`) leaves the epoch as it is. An index is (epoch, k), so that workers and ranks share whole episodes.
    Errors are those of `EpisodeSampler`, raised at once.
    """
    n_inp = 3
    _types = {Episode: [TensorImage, EpisodeLabel, TensorImage, EpisodeLabel]}
    _n_inp = n_inp

    def __init__(self,
        dataset: Any = None, # Dataset of (image, class number); the images of one size
        bs: int = 1, # Ignored: a batch is an episode
        shuffle: bool = False, # New episodes in each pass, or always the same
        num_workers: int | None = None, # None: 0 with a cache, fastai's default without
        *,
        n_way: Count = 5, # Classes per episode; given a pair (lowest, highest), each episode draws its own number
        n_shot: Count = 5, # Support images per class
        n_query: Count = 16, # Queries per class
        n_episodes: int = 100, # Episodes per pass
        seed: int = 0, # Another seed, other episodes
        epoch: int = 0, # Number of the epoch to come
        drop_small: bool = False, # Leave out the classes with too few images, instead of an error
        cache: CacheChoice | ImageCache = None, # Keep decoded images: True, so many GB, a folder, False, None: where possible
        labels: list[int] | None = None, # Class of every image; None: asked of the dataset
        **kwargs, # For `TfmdDL`
    ):
        check_whole('n_episodes', n_episodes, least=1)
        check_whole('seed', seed)
        check_whole('epoch', epoch)
        self.n_way, self.n_shot, self.n_query, self.n_episodes = n_way, n_shot, n_query, n_episodes
        self.seed, self.epoch, self.drop_small = seed, epoch, drop_small
        self._sampler: EpisodeSampler | None = None
        self._distinct = False
        kwargs |= dict(bs=1, n=n_episodes if len(dataset) else 0, drop_last=False)
        kwargs['after_batch'] = _with_split(Pipeline(kwargs.get('after_batch')))
        super().__init__(dataset, shuffle=shuffle, num_workers=num_workers, cache=cache, labels=labels, **kwargs)

    @property
    def sampler(self) -> EpisodeSampler:
        "Draws the episodes; made at the first use, because an exported loader has no images"
        if self._sampler is None:
            self.check_distinct()
            name = {0: 'the training set', 1: 'the held-out set'}.get(getattr(self.dataset, 'split_idx', -1), 'the dataset')
            self._sampler = EpisodeSampler(self.labels, self.n_way, self.n_shot, self.n_query, self.seed, self.drop_small,
                                           self.vocab, name)
        return self._sampler

    def check_distinct(self) -> None:
        "`ValueError` naming a file that the set has twice, perhaps by a link: it could be support and query of one episode"
        if self._distinct: return
        if repeated := same_files(self.files):
            named = ', '.join(repeated[:5]) + (', …' if len(repeated) > 5 else '')
            raise ValueError(f'{len(repeated)} files are in the set more than once, so that an episode could have one as support '
                             f'and as query: {named}. Leave the repeats out')
        self._distinct = True

    def get_idxs(self): return [(self.epoch, k) for k in range(self.n)]

    def create_batches(self, samps: Iterable[tuple[int, int]]) -> Iterator[tuple[Tensor, ...]]:
        "Each (epoch, k) as a flat batch, support first, which `EpisodeSplit` will split"
        for epoch, k in samps: yield self._flat(*self.sampler.episode(k, epoch))

    def _flat(self, support: Sequence[int], query: Sequence[int], classes: tuple[int, ...]) -> tuple[Tensor, ...]:
        y = np.concatenate([np.arange(len(classes)).repeat(len(o)//len(classes)) for o in (support, query)])
        return self._sent(self._batch([*support, *query]), EpisodeLabel(y, classes=classes, n_support=len(support)))

    def after_iter(self):
        "A whole pass ends an epoch of training"
        super().after_iter()
        if self.shuffle: self.epoch += 1

    def one_batch(self):
        "The first episode to come. Raises `ValueError` where there are no images"
        check_any(self, 'draw an episode from')
        return super().one_batch()

    def episode(self,
        k: int = 0, # Number of the episode
        epoch: int | None = None, # Number of the epoch; None: the one to come
    ) -> Episode:
        "The k-th episode, as the model gets it"
        return self._made(*self.sampler.episode(k, self.epoch if epoch is None else epoch))

    def _made(self, support: Sequence[int], query: Sequence[int], classes: tuple[int, ...]) -> Episode:
        "The episode of these images"
        self.before_iter()
        flat = self._flat(support, query, classes)
        return self.after_batch(flat if self.device is None else to_device(flat, self.device))

    def images(self,
        bs: int = 64, # Images per batch
        **kwargs, # For `ImageDL`
    ) -> ImageDL:
        "Every image of the set in order, with the transforms of validation: batches `(images, class numbers)`"
        return self._image_dl(self.dataset, bs=bs, **kwargs)

    def image_split(self,
        bs: int = 64, # Images per batch
        valid_pct: float = 0.1, # Share of each class's images that are held out
    ) -> tuple[ImageDL, ImageDL]:
        "The images of every class in two loaders, one that augments and shuffles and one to validate on"
        rng, labels = np.random.default_rng(self.seed), np.array(self.labels)
        held_out = np.zeros(len(labels), dtype=bool)
        for c in np.unique(labels):
            members = np.flatnonzero(labels == c)
            n_held_out = max(round(valid_pct * len(members)), int(valid_pct > 0 and len(members) > 1))
            held_out[rng.choice(members, n_held_out, replace=False)] = True
        train, valid = (np.flatnonzero(o).tolist() for o in (~held_out, held_out))
        return (self._image_dl(self.dataset, bs=bs, idxs=train, split_idx=0, shuffle=True, drop_last=len(train) > bs),
                self._image_dl(self.dataset, bs=bs, idxs=valid))

    def _image_dl(self, dataset: Any, **kwargs) -> ImageDL:
        settings = dict(after_item=self.after_item, before_batch=self.before_batch, after_batch=self.after_batch,
                        device=self.device)
        return ImageDL(dataset, do_setup=False, **(self._shared(dataset) | settings | kwargs))

    def new(self, dataset: Any = None, cls: Any = None, **kwargs) -> TfmdDL:
        "The same on another dataset or with other settings; on one without labels an `ImageDL`, as there are no episodes to draw"
        if dataset is not None and not _has_labels(dataset):
            # Images seen once are not worth a cache, and a few not worth workers.
            once = dict(bs=64, cache=False) | (dict(num_workers=0) if len(dataset) <= 256 else {})
            return self._image_dl(dataset, **(once | kwargs))
        if {'after_item', 'before_batch'} & kwargs.keys(): kwargs = dict(cache=self._cache_wanted) | kwargs  # other images
        settings = ('n_way', 'n_shot', 'n_query', 'n_episodes', 'seed', 'epoch', 'drop_small')
        return super().new(dataset, cls, **(self._shared(dataset) | {k: getattr(self, k) for k in settings} | kwargs))

    def decode(self, b: Episode) -> Episode:
        "The episode with its images as they were before the batch transforms"
        return Episode.from_flat(*to_cpu(self.after_batch.decode(b.flat())))

    def decode_batch(self, b: Episode, max_n: int = 9, full: bool = True) -> L:
        "The first images of an episode, support before queries, each with the name of its class"
        x, y = self.decode(b).flat()
        return L((image, self.vocab[b.classes[label]]) for image, label in zip(x[:max_n], y.tolist()))

    def show_batch(self, b: Episode | None = None, *args, unique: bool = False, **kwargs) -> Any:
        """Draw an episode, `b` or the first one: the support of each class in a row and its queries beside it.

        With `unique`, one image of each class is in all of its places, to see what augmentation makes of it.
        """
        if unique:
            support, query, classes = self.sampler.episode(0, self.epoch)
            first = np.array(support)[::len(support) // len(classes)]
            repeated = lambda idxs: first.repeat(len(idxs) // len(classes)).tolist()
            b = self._made(repeated(support), repeated(query), classes)
        return super().show_batch(b, *args, **({'vocab': self.vocab} | kwargs))

    def show_results(self, b: Episode, out: Any, *args, **kwargs) -> Any:
        "Draw an episode with the predicted labels `out` of its queries: right ones green, wrong ones red"
        if not isinstance(b, Episode): b = Episode(*b)  # the parts of one, as `get_preds` returns them
        return super().show_results(b, out, *args, **({'vocab': self.vocab} | kwargs))
