"Episodes in fastai's DataBlock API"
from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

from fastai.data.block import TransformBlock
from fastai.data.transforms import Categorize, CategoryMap
from fastcore.foundation import L

from .cache import CacheChoice
from .episode import EpisodeSplit
from .episode_loader import EpisodicDL
from .names import composed
from .sampler import Count

__all__ = ['EpisodeBlock', 'EpisodeCategorize']


def _check_categories(labels: Sequence) -> None:
    "`TypeError` naming the first label that cannot be the name of a class"
    for o in labels:
        whole = isinstance(o, numbers.Integral) or isinstance(o, numbers.Real) and float(o).is_integer()
        if isinstance(o, str) and o or whole: continue
        raise TypeError(f'an episode needs one category per image, a string or an integer, but a label is {o!r} '
                        f'({type(o).__name__})')
    spelled: dict[str, Any] = {}
    for o in set(labels):
        if (first := spelled.setdefault(composed(str(o)), o)) != o:
            raise ValueError(f'two classes are called {o}: {first!r} and {o!r} ({ascii(first)} and {ascii(o)}): '
                             'give them one spelling if they are one class, else two names')


class EpisodeCategorize(Categorize):
    """Numbers of categories in a vocabulary of all items, with the training classes first.

    The training classes are 0…n−1; classes that are only in validation or test follow. Raises `TypeError` for labels that are
    no categories, and `ValueError` for a label that is not in a given `vocab`.
    """
    train_setup = False  # all items, not the training set alone, whose classes are other ones

    def setups(self, dsets):
        labels = list(dsets)
        _check_categories(labels)
        if self.vocab is None:
            in_training = {labels[i] for i in dsets.splits[0]} if getattr(dsets, 'splits', None) else set()
            key = str if len({isinstance(o, str) for o in labels}) > 1 else None
            held_out = set(labels) - in_training
            self.vocab = CategoryMap(sorted(in_training, key=key) + sorted(held_out, key=key), sort=False)
        elif missing := sorted(map(str, set(labels) - set(self.vocab))):
            raise ValueError(f'labels that the vocab lacks: {", ".join(missing)}')
        self.c = len(self.vocab)


def EpisodeBlock(
    n_way: Count = 5, # Classes per episode; given a pair (lowest, highest), each episode draws its own number
    n_shot: Count = 5, # Support images per class
    n_query: Count = 16, # Queries per class
    n_episodes: int = 100, # Training episodes per epoch
    val_n_way: Count | None = None, # Classes per validation episode; None: as in training
    val_n_shot: Count | None = None, # Support images per class in validation; None: as in training
    val_n_query: Count | None = None, # Queries per class in validation; None: as in training
    val_n_episodes: int | None = None, # Episodes per validation; None: as in training
    seed: int = 0, # Seed of the episodes; the k-th of an epoch depends on (seed, epoch, k) alone
    vocab: Sequence | None = None, # Names of the classes; None: from the labels, the training classes first
    drop_small: bool = False, # Leave out classes with too few images instead of raising an error
    cache: CacheChoice = None, # Keep decoded images: True, so many GB, a folder, a device ('cuda'), False, None: where possible
) -> TransformBlock:
    "A `TransformBlock` for the category of each image whose loaders draw episodes, in place of `CategoryBlock`"
    settings: dict[str, Any] = dict(n_way=n_way, n_shot=n_shot, n_query=n_query, n_episodes=n_episodes, seed=seed,
                                    drop_small=drop_small, cache=cache)
    for_valid = dict(val_n_way=val_n_way, val_n_shot=val_n_shot, val_n_query=val_n_query, val_n_episodes=val_n_episodes)
    settings |= {k: v for k, v in for_valid.items() if v is not None}
    # The class, not an instance: each dataset that the block is used on gets a vocabulary of its own.
    categorize = EpisodeCategorize if vocab is None else EpisodeCategorize(vocab=L(vocab), sort=False)
    return TransformBlock(type_tfms=[categorize], batch_tfms=EpisodeSplit, dl_type=EpisodicDL, dls_kwargs=settings)
