"Which images make the k-th episode"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ['EpisodeIndices', 'EpisodeSampler', 'Count', 'as_range', 'check_whole', 'count_text']

Count = int | tuple[int, int]
"A number, or the (lowest, highest) between which each episode draws one"


class EpisodeIndices(NamedTuple):
    "An episode as positions in its dataset, class by class in the order of `classes`"
    support: list[int]
    query: list[int]
    classes: tuple[int, ...]


def check_whole(
    name: str, # Name of the argument, for the message of an error
    value: Any, # Must be a whole number
    least: int = 0, # The smallest that it may be
) -> None:
    "`TypeError` for an argument that is no whole number, `ValueError` for one that is too small"
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f'{name}={value!r:.60}: wanted a whole number, at least {least}')
    if value < least: raise ValueError(f'{name}={value}: at least {least}')


def count_text(
    count: Count, # A number, or a pair
) -> str:
    """As people write it.

    >>> count_text(5), count_text((2, 5))
    ('5', '2–5')
    """
    return '–'.join(map(str, dict.fromkeys(as_range('count', count))))


def as_range(
    name: str, # Name of the argument, for the message of an error
    count: Count, # A number, or a pair
) -> tuple[int, int]:
    "`count` as (lowest, highest); `ValueError` unless 1 ≤ lowest ≤ highest"
    numbers = list(count) if isinstance(count, tuple | list) else [count, count]
    if len(numbers) != 2 or not all(isinstance(o, int | np.integer) and not isinstance(o, bool) for o in numbers):
        raise TypeError(f'{name}={count!r}: an int, or a pair of ints (lowest, highest)')
    low, high = map(int, numbers)
    if not 1 <= low <= high: raise ValueError(f'{name}={count!r}: at least 1' + (', lowest first' if low > high else ''))
    return low, high


def _names(classes: Sequence, limit: int = 10) -> str:
    "The first classes of a list, for a message"
    return ', '.join(map(str, classes[:limit])) + (f', … ({len(classes)} in all)' if len(classes) > limit else '')


class EpisodeSampler:
    """Draws episodes of `n_way` classes with `n_shot` support and `n_query` query images each, no image twice.

    The k-th episode of an epoch depends on (seed, epoch, k) alone: workers and ranks need not talk to agree. Drawing one takes
    time in the classes, not in the images. Raises `ValueError` for fewer classes than `n_way`, and for classes with fewer
    than `n_shot + n_query` images, unless `drop_small` leaves those out.

    >>> sampler = EpisodeSampler([0, 0, 0, 1, 1, 1, 2, 2, 2], n_way=2, n_shot=1, n_query=2)
    >>> support, query, classes = sampler.episode(0)
    >>> len(support), len(query), len(classes), sampler.episode(0) == sampler.episode(0)
    (2, 4, 2, True)
    """
    def __init__(self,
        labels: Sequence[int] | np.ndarray, # Class of every image of the dataset
        n_way: Count = 5, # Classes per episode
        n_shot: Count = 5, # Support images per class
        n_query: Count = 16, # Query images per class
        seed: int = 0, # Another seed, other episodes
        drop_small: bool = False, # Leave out the classes with too few images, instead of an error
        vocab: Sequence | None = None, # Names of the classes, for messages
        name: str = 'this dataset', # What the images belong to, for messages
    ):
        check_whole('seed', seed)
        self.n_way, self.n_shot, self.n_query, self.seed, self.name = n_way, n_shot, n_query, seed, name
        self._way, self._shot, self._query = (as_range(k, v) for k, v in
                                              (('n_way', n_way), ('n_shot', n_shot), ('n_query', n_query)))
        self._vocab = vocab
        self._index(np.asarray(labels, dtype=np.int64), drop_small)

    def _index(self, labels: np.ndarray, drop_small: bool) -> None:
        "Positions of the images of every class that is large enough"
        order = np.argsort(labels, kind='stable')
        classes, starts = np.unique(labels[order], return_index=True)
        members = np.split(order, starts[1:]) if len(classes) else []
        needed = self._shot[1] + self._query[1]
        self.dropped = {int(c): len(m) for c, m in zip(classes, members, strict=True) if len(m) < needed}
        if self.dropped and not drop_small:
            raise ValueError(f'{self._too_small(needed)}: ask for fewer, or leave them out by drop_small=True (--drop-small)')
        kept = [(int(c), m) for c, m in zip(classes, members, strict=True) if len(m) >= needed]
        self.classes, self._members = [c for c, _ in kept], [m for _, m in kept]
        if len(kept) < self._way[1]:
            why = f', after leaving out {self._too_small(needed)}' if self.dropped else ''
            raise ValueError(f'n_way={self.n_way}, but {self.name} has {len(kept)} classes '
                             f'({_names([self._class_name(c) for c in self.classes])}){why}: '
                             'ask for fewer, or bring more classes')

    def _class_name(self, c: int) -> str: return str(c if self._vocab is None else self._vocab[c])

    def _too_small(self, needed: int) -> str:
        counts = _names([f'{self._class_name(c)!r}: {n}' for c, n in self.dropped.items()])
        return (f'{len(self.dropped)} classes of {self.name} with fewer than n_shot + n_query = '
                f'{self._shot[1]} + {self._query[1]} = {needed} images ({counts})')

    @property
    def varies(self) -> bool:
        "Do episodes differ in their numbers of classes or images?"
        return any(low < high for low, high in (self._way, self._shot, self._query))

    def describe_dropped(self) -> str:
        "The classes that `drop_small` left out, with their counts; empty when there are none"
        return self._too_small(self._shot[1] + self._query[1]) if self.dropped else ''

    def episode(self,
        k: int, # Number of the episode in its epoch
        epoch: int = 0, # Number of the epoch
    ) -> EpisodeIndices:
        "The k-th episode of an epoch, the same at every call"
        rng = np.random.default_rng([self.seed, epoch, k])
        way, shot, query = (low if low == high else int(rng.integers(low, high, endpoint=True))
                            for low, high in (self._way, self._shot, self._query))
        chosen = rng.choice(len(self.classes), way, replace=False)
        drawn = [self._members[c][rng.choice(len(self._members[c]), shot + query, replace=False)] for c in chosen]
        return EpisodeIndices(support=np.concatenate([d[:shot] for d in drawn]).tolist(),
                              query=np.concatenate([d[shot:] for d in drawn]).tolist(),
                              classes=tuple(self.classes[c] for c in chosen))
