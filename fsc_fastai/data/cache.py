"Decoded images kept in memory"
from __future__ import annotations

import mmap
import warnings
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from fastcore.basics import defaults
from torch import Tensor

__all__ = ['ImageCache']

GB = 1024**3


class ImageCache:
    """Keeps each image of a dataset as uint8 after its first use, so that an episode costs one gather.

    The memory is allocated at once, filled as images are asked for (several at a time in threads), and shared with forked
    workers: what a worker decodes, all have. Images that need more than the limit, or that are not uint8, stay uncached,
    with a warning. Pickled it is empty.
    """
    budget_gb, _used = 4., 0

    def __init__(self,
        n: int, # Images in the dataset
        limit_gb: float | None = None, # Memory that it may take; None: what all others have left of `budget_gb`
    ):
        self.n, self.limit_gb, self.usable = n, limit_gb, True
        self.store, self.filled = torch.empty(0, dtype=torch.uint8), torch.zeros(0, dtype=torch.bool)

    def __reduce__(self): return type(self), (self.n, self.limit_gb)
    def __len__(self) -> int: return int(self.filled.sum())

    def __repr__(self) -> str:
        return f'{type(self).__name__}({len(self)} of {self.n} images in memory, {self.store.nbytes/GB:.2f} GB)'

    def prepare(self,
        load: Callable[[int], Tensor], # Position to image `(C, H, W)`
    ) -> bool:
        "Allocate the memory, once; whether the images can be cached. Call it before workers start, so that they share it"
        if not len(self.store) and self.usable and self.n: self._allocate(load(0))
        return len(self.store) > 0

    def _allocate(self, image: Tensor) -> None:
        self.usable = image.dtype is torch.uint8
        if not self.usable:
            warnings.warn(f'images of type {image.dtype} are not cached, only uint8', stacklevel=2)
            return
        size = self.n * image.nbytes
        limit = ImageCache.budget_gb - ImageCache._used/GB if self.limit_gb is None else self.limit_gb
        self.usable = size <= limit * GB
        if not self.usable:
            warnings.warn(f'{self.n} images of {"×".join(map(str, image.shape))} need {size/GB:.1f} GB, more than the '
                          f'{limit:.2g} GB that their cache may take: they are decoded anew for every episode. '
                          f'cache={size/GB + .1:.1f} would keep them, cache=False silences this', stacklevel=2)
            return
        self.type = type(image)
        self.store = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8).view(self.n, *image.shape)
        self.filled = torch.frombuffer(mmap.mmap(-1, self.n), dtype=torch.bool)
        _count(size)
        weakref.finalize(self, _count, -size)

    def get(self,
        idxs: Sequence[int], # Positions in the dataset
        load: Callable[[int], Tensor], # Position to image `(C, H, W)`
    ) -> Tensor:
        "The images at `idxs` as one batch `(n, C, H, W)`, after loading those not yet there"
        at = torch.as_tensor(idxs)
        missing = np.unique(at[~self.filled[at]].numpy()).tolist()
        if missing: self._fill(missing, load)
        return self.store[at].as_subclass(self.type)

    def _fill(self, idxs: list[int], load: Callable[[int], Tensor]) -> None:
        with ThreadPoolExecutor(min(8, defaults.cpus)) as pool:
            for i, image in zip(idxs, pool.map(load, idxs), strict=True):
                if image.shape != self.store.shape[1:]:
                    raise ValueError(f'image {i} has the shape {tuple(image.shape)}, the others {tuple(self.store.shape[1:])}: '
                                     'item_tfms must bring all to one size')
                self.store[i] = image.as_subclass(Tensor)
                self.filled[i] = True


def _count(size: int) -> None:
    "Add `size` bytes to what all caches take"
    ImageCache._used += size
