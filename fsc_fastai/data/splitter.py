"Splits that keep the classes of training, validation and test apart"
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastai.data.transforms import parent_label

from .names import composed
from .sampler import check_whole

__all__ = ['ClassSplitter', 'Share']

Share = float | Collection | Callable[[Any], bool] | None
"Which classes: a fraction of them, their names, or a predicate of a name"


class ClassSplitter:
    """Splits items by class: lists of positions for training, validation and, where asked for, test.

    `valid` and `test` are each a fraction of the classes (drawn by `seed`), a collection of class names, or a predicate of a
    name; the rest is for training, unless `train` names its classes. Raises `ValueError` for names that no item has and
    for classes that two sets claim.

    >>> ClassSplitter(valid=['wren'], test=lambda name: name.endswith('hawk')).split_classes(['goshawk', 'robin', 'wren'])
    [['robin'], ['wren'], ['goshawk']]
    """
    def __init__(self,
        valid: Share = .2, # Classes to validate on
        test: Share = None, # Classes to hold out for testing; None: no such set
        train: Share = None, # Classes to train on; None: the rest
        *,
        seed: int = 0, # Of the drawing by fractions
        label_func: Callable[[Any], Any] = parent_label, # Item to class name; the default is the folder it lies in
    ):
        check_whole('seed', seed)
        self.valid, self.test, self.train, self.seed, self.label_func = valid, test, train, seed, label_func

    @staticmethod
    def by_folder(
        train: str | Sequence[str] = ('base', 'train'), # Names of the folder above the class folders
        valid: str | Sequence[str] = ('val', 'valid'), # The same for validation
        test: str | Sequence[str] = ('novel', 'test'), # The same for testing; a tree may do without
    ) -> FolderSplitter:
        "A splitter by the folder above the class folders: `base/val/novel`, `train/valid/test`, …"
        return FolderSplitter(train, valid, test)

    def __call__(self, items: Sequence) -> list[list[int]]:
        "Positions of the items of each set"
        return self.split_labels([self.label_func(o) for o in items])

    def split_labels(self,
        labels: Sequence, # Class of every item
    ) -> list[list[int]]:
        "Positions of the labels of each set"
        sets = self.split_classes(sorted(set(labels), key=str))
        where = {c: i for i, classes in enumerate(sets) for c in classes}
        splits: list[list[int]] = [[] for _ in sets]
        for i, label in enumerate(labels):
            if label in where: splits[where[label]].append(i)
        return splits

    def split_classes(self,
        classes: list, # The class names, sorted
    ) -> list[list]:
        "The class names of each set, disjoint"
        shares = {'train': self.train, 'valid': self.valid, 'test': self.test}
        sets = {k: self._named(o, classes) for k, o in shares.items() if o is not None and not isinstance(o, int | float)}
        check_disjoint(sets)
        named = set().union(*sets.values())
        rest = [c for c in classes if c not in named]
        drawn = [rest[i] for i in np.random.default_rng(self.seed).permutation(len(rest))]
        for k, share in shares.items():
            if not isinstance(share, int | float): continue
            if not 0 <= share < 1: raise ValueError(f'{k}={share}: a fraction of the classes is at least 0 and below 1')
            count = max(1, round(share * len(classes))) if share else 0
            sets[k], drawn = sorted(drawn[:count], key=str), drawn[count:]
        if self.train is None: sets['train'] = sorted(drawn, key=str)
        return [sets[k] for k in shares if k in sets]

    def _named(self, share: Collection | Callable[[Any], bool], classes: list) -> list:
        "The classes that a predicate or a list of names chooses"
        if callable(share): return [c for c in classes if share(c)]
        names = [composed(str(o)) for o in ([share] if isinstance(share, str) else share)]
        known = {composed(str(o)): o for o in classes}
        if missing := sorted(set(names) - set(known)):
            raise ValueError(f'no item has the class {", ".join(missing)}; there are {", ".join(map(str, classes[:20]))}')
        return [known[o] for o in names]


class FolderSplitter:
    "Splits items by the folder above their class folder; see `ClassSplitter.by_folder`"
    def __init__(self, *sets: str | Sequence[str]):
        self.sets = [{o} if isinstance(o, str) else set(o) for o in sets]

    def __call__(self, items: Sequence[Path]) -> list[list[int]]:
        "Positions of the items of each set. Raises `ValueError` for nothing to train or validate on, or a class in two sets"
        splits = [[i for i, o in enumerate(items) if Path(o).parent.parent.name in names] for names in self.sets]
        for names, split, what in zip(self.sets, splits, ('train', 'validate'), strict=False):
            if not split:
                raise ValueError(f'no image lies in a class folder below {" or ".join(sorted(names))}, to {what} on: name the '
                                 'folder (ClassSplitter.by_folder(train=…, valid=…)), or use ClassSplitter(0.2)')
        classes = [sorted({parent_label(items[i]) for i in split}) for split in splits]
        check_disjoint(dict(zip(('train', 'valid', 'test'), classes, strict=False)))
        return splits if splits[2] else splits[:2]


def check_disjoint(
    sets: Mapping[str, Collection], # Class names by the name of their set
) -> None:
    "`ValueError` naming the classes that more than one set has"
    counts = Counter(c for classes in sets.values() for c in set(classes))
    if shared := sorted((c for c, n in counts.items() if n > 1), key=str):
        where = {name for name, classes in sets.items() if set(classes) & set(shared)}
        raise ValueError(f'{" and ".join(n for n in sets if n in where)} must not share classes, but do: '
                         f'{", ".join(map(str, shared[:20]))}' + (' …' if len(shared) > 20 else ''))
