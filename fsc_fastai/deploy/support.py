"The labelled examples of a deployed classifier"
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.images import DatasetImage
from ..data.names import composed
from ..data.readers import read_folder
from ..methods.base import one_hot

__all__ = ['Label', 'Support', 'as_items', 'is_single', 'labelled_items', 'thumbnails_of', 'check_size', 'text_problem']

Label = str | int
THUMBNAIL = 48
MAX_MEMBER = 1 << 24 # Most entries of a one-hot matrix, 64 MB, of which methods have several


@dataclass(frozen=True)
class Support:
    "Features `(n_support, ...)`, labels and thumbnails of the examples; `classes` are sorted, as in scikit-learn"
    features: Tensor
    labels: tuple[Label, ...]
    thumbnails: Tensor | None = None # Bytes `(n_support, 3, 48, 48)`
    pixels: Tensor | None = None # Bytes `(n_support, channels, height, width)`, if the encoder is adapted to them; never saved

    @property
    def classes(self) -> list[Label]:
        "The classes, sorted"
        return sorted(set(self.labels)) # type: ignore[type-var]

    @property
    def member(self) -> Tensor:
        "One-hot labels `(n_support, n_way)`"
        index = {c: i for i, c in enumerate(self.classes)}
        check_size(len(self.labels), len(index))
        return one_hot(torch.tensor([index[o] for o in self.labels], device=self.features.device), self.features.dtype)

    def joined(self, other: Support) -> Support:
        "The examples of both. Raises `TypeError` if one has text labels and the other numbers"
        _one_type((*self.labels, *other.labels))
        both = lambda a, b: None if a is None or b is None else torch.cat([a, b])
        return Support(torch.cat([self.features, other.features]), (*self.labels, *other.labels),
                       both(self.thumbnails, other.thumbnails), both(self.pixels, other.pixels))

    def without(self, label: Label) -> Support:
        "The examples of the other classes"
        keep = torch.tensor([o != label for o in self.labels], device=self.features.device)
        kept = lambda t: None if t is None else t[keep.to(t.device)]
        return Support(self.features[keep], tuple(o for o in self.labels if o != label), kept(self.thumbnails), kept(self.pixels))

    def to(self, device: torch.device | str) -> Support:
        "A copy with the features on another device"
        return replace(self, features=self.features.to(device))


def thumbnails_of(
    pixels: Tensor, # Bytes `(n, channels, height, width)`
) -> Tensor:
    "Small pictures `(n, 3, 48, 48)`, for people to look at"
    return F.interpolate(pixels.expand(-1, 3, -1, -1).float(), (THUMBNAIL, THUMBNAIL), mode='area').round().byte()


def is_single(item: Any) -> bool:
    "Is it one image, not a collection?"
    if isinstance(item, np.ndarray | Tensor): return item.ndim < 4
    return isinstance(item, str | bytes | Path | DatasetImage) or hasattr(item, 'convert')


def as_items(
    items: Any, # Images, as a sequence or an array `(n, ...)`; or one image
) -> list[Any]:
    "Images as a list. Raises `TypeError` for anything that is neither an image nor a collection"
    if is_single(items): return [items]
    if not isinstance(items, Iterable):
        raise TypeError(f'images are files, bytes, PIL images, arrays or tensors, not {type(items).__name__}')
    return list(items)


def _label(label: Any) -> Label:
    "A label as the JSON of a bundle can hold it"
    if isinstance(label, np.generic) or (isinstance(label, Tensor) and label.ndim == 0): label = label.item()
    if isinstance(label, float) and label.is_integer(): label = int(label)  # what pandas makes of numbers in a column with gaps
    if type(label) not in (str, int): raise TypeError(f'labels are text or whole numbers, not {label!r} ({type(label).__name__})')
    if problem := text_problem(label): raise ValueError(f'a label {problem}: give the class another name')
    return composed(label)


def text_problem(label: Label) -> str | None:
    "The reason why a label cannot be written to a file or displayed, or None"
    if isinstance(label, int): return None if abs(label) < 1 << 63 else 'is a number of more than 64 bits'
    try: label.encode()
    except UnicodeEncodeError: return f'is no valid text: {label[:64]!a}'
    return None


def check_size(n_support: int, n_way: int) -> None:
    "Raise `ValueError` if the one-hot labels would be too large"
    if n_support * n_way > MAX_MEMBER:
        raise ValueError(f'{n_support} examples of {n_way} classes: their product may be {MAX_MEMBER:,} at most')


def _one_type(labels: Iterable[Label]) -> None:
    if len({type(o) for o in labels}) > 1: raise TypeError('labels must be all text, or all whole numbers: classes are sorted')


def labelled_items(
    items: Any, # Images, or a folder with one folder of images per class
    labels: Sequence[Any] | None, # The label of each image; None: the names of the folders
) -> tuple[list[Any], tuple[Label, ...]]:
    """Images and their labels. Checks that there are equally many, at least one, with labels of one type.

    Raises `ValueError` or `TypeError` otherwise, and `FileNotFoundError` for a missing or empty folder.
    """
    if labels is None:
        if not isinstance(items, str | Path):
            raise TypeError('labels are needed, unless the images come as a folder of class folders')
        images = read_folder(items)
        items, labels = images.files, images.labels
    items, named = as_items(items), tuple(map(_label, labels))
    if len(items) != len(named): raise ValueError(f'{len(items)} images, but {len(named)} labels: they must match one to one')
    if not items: raise ValueError('no images: a class needs one example at least')
    _one_type(named)
    return items, named
