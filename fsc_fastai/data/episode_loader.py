"Loaders of episodes"
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from fastai.data.core import TfmdDL
from fastai.torch_core import TensorImage, to_cpu, to_device
from fastcore.foundation import L
from fasttransform.transform import Pipeline
from torch import Tensor

from .cache import CacheChoice, ImageCache
from .episode import Episode, EpisodeLabel, EpisodeSplit
from .image_files import same_files
from .loader import CachedDL, ImageDL, check_any, has_labels
from .sampler import Count, EpisodeSampler, check_whole

__all__ = ['EpisodicDL']


class EpisodicDL(CachedDL):
    """Loads `Episode`s: `n_way` classes with `n_shot` support and `n_query` query images each.

    The k-th episode depends on (seed, epoch, k) alone, not on workers or ranks, which share whole episodes. With `shuffle`, as in
    training, each pass is an epoch of new episodes; without, as in validation, each pass repeats the same ones. `one_batch` and
    `show_batch` show the next episode and do not advance the epoch. Raises the errors of `EpisodeSampler` at once.

        episode = EpisodicDL(dataset, n_way=5, n_shot=1).episode(0)
    """
    n_inp = 3
    _types = {Episode: [TensorImage, EpisodeLabel, TensorImage, EpisodeLabel]}
    _n_inp = n_inp

    def __init__(self,
        dataset: Any = None, # Dataset of (image, class number) with images of one size
        bs: int = 1, # Ignored: a batch is an episode
        shuffle: bool = False, # Draw new episodes in each pass; False: always the same
        num_workers: int | None = None, # None: 0 with a cache, fastai's default without
        *,
        n_way: Count = 5, # Classes per episode; given a pair (lowest, highest), each episode draws its own number
        n_shot: Count = 5, # Support images per class
        n_query: Count = 16, # Queries per class
        n_episodes: int = 100, # Episodes per pass
        seed: int = 0, # Seed of the episodes
        epoch: int = 0, # Number of the next epoch
        drop_small: bool = False, # Leave out classes with too few images instead of raising an error
        cache: CacheChoice | ImageCache = None, # Keep decoded images: True, GB, a folder, a device, False, None: where possible
        labels: list[int] | None = None, # Class of every image; None: read from the dataset
        **kwargs, # For `TfmdDL`
    ):
        check_whole('n_episodes', n_episodes, least=1)
        check_whole('seed', seed)
        check_whole('epoch', epoch)
        self.n_way, self.n_shot, self.n_query, self.n_episodes = n_way, n_shot, n_query, n_episodes
        self.seed, self.epoch, self.drop_small = seed, epoch, drop_small
        self._sampler: EpisodeSampler | None = None
        self._distinct = False
        after_batch = Pipeline(kwargs.get('after_batch'))
        if not any(isinstance(f, EpisodeSplit) for f in after_batch.fs): after_batch.add(EpisodeSplit())
        kwargs |= dict(bs=1, n=n_episodes if len(dataset) else 0, drop_last=False, after_batch=after_batch)
        super().__init__(dataset, shuffle=shuffle, num_workers=num_workers, cache=cache, labels=labels, **kwargs)

    @property
    def sampler(self) -> EpisodeSampler:
        "The sampler of the episodes; it is made when first used, because an exported loader has no images"
        if self._sampler is None:
            self.check_distinct()
            name = {0: 'the training set', 1: 'the held-out set'}.get(getattr(self.dataset, 'split_idx', -1), 'the dataset')
            self._sampler = EpisodeSampler(self.labels, self.n_way, self.n_shot, self.n_query, self.seed, self.drop_small,
                                           self.vocab, name)
        return self._sampler

    def check_distinct(self) -> None:
        "Raise `ValueError` for a file that occurs twice, also by a link: it could be support and query of the same episode"
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
        "The next episode. Raises `ValueError` if there are no images"
        check_any(self, 'draw an episode from')
        return super().one_batch()

    def episode(self,
        k: int = 0, # Number of the episode
        epoch: int | None = None, # Number of the epoch; None: the next one
    ) -> Episode:
        "The k-th episode as an `Episode`, after all transforms"
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
        "A loader of all images in order, with validation transforms: batches `(images, class numbers)`"
        return self._image_dl(self.dataset, bs=bs, **kwargs)

    def image_split(self,
        bs: int = 64, # Images per batch
        valid_pct: float = 0.1, # Share of each class's images that are held out
    ) -> tuple[ImageDL, ImageDL]:
        "Two loaders of single images: one for training, which augments and shuffles, and one for validation"
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
        "A loader of another dataset or with other settings; an `ImageDL` if the dataset has no labels to draw episodes by"
        if dataset is not None and not has_labels(dataset):
            # Images seen once are not worth a cache, and a few not worth workers.
            once = dict(bs=64, cache=False) | (dict(num_workers=0) if len(dataset) <= 256 else {})
            return self._image_dl(dataset, **(once | kwargs))
        if {'after_item', 'before_batch'} & kwargs.keys(): kwargs = dict(cache=self._cache_for_others) | kwargs  # other images
        settings = ('n_way', 'n_shot', 'n_query', 'n_episodes', 'seed', 'epoch', 'drop_small')
        return super().new(dataset, cls, **(self._shared(dataset) | {k: getattr(self, k) for k in settings} | kwargs))

    def decode(self, b: Episode) -> Episode:
        "The episode with its images before the batch transforms"
        return Episode.from_flat(*to_cpu(self.after_batch.decode(b.flat())))

    def decode_batch(self, b: Episode, max_n: int = 9, full: bool = True) -> L:
        "The first images of an episode, support first, each with the name of its class"
        x, y = self.decode(b).flat()
        return L((image, self.vocab[b.classes[label]]) for image, label in zip(x[:max_n], y.tolist()))

    def show_batch(self, b: Episode | None = None, *args, unique: bool = False, **kwargs) -> Any:
        """Draw an episode, `b` or the next one, with a row of support images and queries for each class.

        With `unique`, each class shows a single image several times, which shows the effect of augmentations.
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
