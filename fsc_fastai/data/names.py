"Names of classes and domains, which are keys: one name for one thing"
from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ['composed', 'distinct', 'named_paths']


def composed(name: Any) -> Any:
    "A name in the composed spelling of Unicode (NFC), in which an accent has one way to be written; other labels as they are"
    return unicodedata.normalize('NFC', name) if isinstance(name, str) else name


def distinct(
    names: Iterable, # Names of the classes by number; a tuple of synonyms is one name
) -> list:
    """Names that tell the classes apart: those that several classes have get their class number.

    >>> distinct([('crane',), ('tench', 'Tinca tinca'), 'crane'])
    ['crane (0)', 'tench, Tinca tinca', 'crane (2)']
    """
    joined = [', '.join(map(str, o)) if isinstance(o, tuple | list) else o for o in names]
    plain = [o if isinstance(o, int) else composed(str(o)) for o in joined]
    counts = Counter(plain)
    return [o if counts[o] == 1 else f'{o} ({i})' for i, o in enumerate(plain)]


def named_paths(
    paths: Sequence[str | os.PathLike], # Folders or files
) -> dict[str, Path]:
    """Paths by their last part, and by as many more as it takes to tell them apart. Raises `ValueError` for one given twice.

    >>> list(named_paths(['plants/novel', 'cars/novel', 'birds']))
    ['plants/novel', 'cars/novel', 'birds']
    """
    parts = [Path(os.path.abspath(Path(p).expanduser())).parts for p in paths]
    if twice := [str(p) for p, o in zip(paths, parts, strict=True) if parts.count(o) > 1]:
        raise ValueError(f'{" and ".join(twice[:2])} are one and the same: name it once')

    def name(own: tuple[str, ...]) -> str:
        n = next(n for n in range(1, len(own) + 1) if sum(o[-n:] == own[-n:] for o in parts) == 1)
        return '/'.join(own[-n:])
    return {name(own): Path(p).expanduser() for own, p in zip(parts, paths, strict=True)}
