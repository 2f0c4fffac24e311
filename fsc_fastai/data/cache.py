"Decoded images kept as bytes, in memory or in a memory-mapped file"
from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import warnings
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastcore.basics import defaults
from fastprogress.fastprogress import progress_bar
from filelock import FileLock
from torch import Tensor

from ..files import atomic_write
from .pages import empty_batch

__all__ = ['ImageCache', 'CacheChoice']

GB = 1024**3
CacheChoice = bool | float | str | os.PathLike | None
"""Where decoded images are kept: True for memory, a number for memory of at most so many GB, a folder for a file in it that later
runs and other processes share, None for memory where that is possible, False for nowhere"""

Load = Callable[[int], Tensor]


class ImageCache:
    """Keeps each image of a dataset as uint8 once it has been decoded, so that an episode costs one gather.

    In memory: allocated at once, filled as images are asked for (several at a time in threads) or by `build`, and shared with
    forked workers: what a worker decodes, all have. In a `folder`: one file, built before its first use, memory-mapped by
    every process of the machine and found again by later runs. Images that need more than the limit, than the free memory or
    than the free disk, or that are not uint8, stay uncached, with a warning. Pickled it is empty.
    """
    budget_gb, tell_gb, _used = 4., 1., 0

    def __init__(self,
        n: int, # Images in the dataset
        limit_gb: float | None = None, # Memory that it may take; None: what all others have left of `budget_gb`
        folder: str | os.PathLike | None = None, # Where the file is kept; None: in memory
    ):
        self.n, self.limit_gb, self.usable = n, limit_gb, True
        self.folder = None if folder is None else Path(folder).expanduser()
        self.store, self.filled = torch.empty(0, dtype=torch.uint8), torch.zeros(0, dtype=torch.bool)

    def __reduce__(self): return type(self), (self.n, self.limit_gb, self.folder)
    def __len__(self) -> int: return int(self.filled.sum())

    def __repr__(self) -> str:
        where = 'memory' if self.folder is None else str(self.folder)
        return f'{type(self).__name__}({len(self)} of {self.n} images in {where}, {self.store.nbytes/GB:.2f} GB)'

    @property
    def wanted(self) -> CacheChoice:
        "What a loader on other images is to be told"
        return self.limit_gb if self.folder is None else self.folder

    def prepare(self,
        load: Load, # Position to image `(C, H, W)`
        identity: Callable[[], str] = str, # With a folder: what the images are made of, items and transforms
    ) -> bool:
        """Take the memory, or open the file; whether the images can be cached.

        Call it before workers start, so that they share it. The file is that of the same `identity` and the same pixels of
        a few images, so that other images or transforms never meet it.
        """
        if not len(self.store) and self.usable and self.n: self._allocate(load, identity)
        return len(self.store) > 0

    def build(self,
        load: Load, # Position to image `(C, H, W)`
        identity: Callable[[], str] = str, # As in `prepare`
        progress: bool = True, # Show a progress bar
    ) -> bool:
        "Decode every image that is not yet there; whether the images can be cached"
        if not self.prepare(load, identity): return False
        missing = (~self.filled).nonzero().flatten().tolist()
        if missing: self._fill(missing, load, progress)
        return True

    def get(self,
        idxs: Sequence[int], # Positions in the dataset
        load: Load, # Position to image `(C, H, W)`
        pinned: bool = False, # As in `empty_batch`
    ) -> Tensor:
        "The images at `idxs` as one batch `(n, C, H, W)`, after loading those not yet there"
        at = torch.as_tensor(idxs)
        missing = np.unique(at[~self.filled[at]].numpy()).tolist()
        if missing: self._fill(missing, load)
        batch = empty_batch((len(at), *self.store.shape[1:]), torch.uint8, pinned)
        torch.index_select(self.store, 0, at, out=batch)  # copies whole images, where indexing goes by the byte
        return batch.as_subclass(self.type)

    def _allocate(self, load: Load, identity: Callable[[], str]) -> None:
        image = load(0)
        self.type = type(image)
        self.usable = image.dtype is torch.uint8
        if not self.usable:
            warnings.warn(f'images of type {image.dtype} are not cached, only uint8', stacklevel=3)
            return
        if self.folder is None: self._in_memory(image)
        else: self._in_file(self.folder, image, load, identity)

    def _in_memory(self, image: Tensor) -> None:
        size = self.n * image.nbytes
        ranks = int(os.environ.get('LOCAL_WORLD_SIZE', 1))  # that share the machine
        limit = ImageCache.budget_gb/ranks - ImageCache._used/GB if self.limit_gb is None else self.limit_gb
        free = free_memory()
        self.usable = size <= min(limit * GB, free)
        if not self.usable:
            have, remedy = ((f'{free/GB:.2g} GB of memory that are free', 'cache=folder would keep them in a file') if size > free
                            else (f'{limit:.2g} GB that their cache may take', f'cache={size/GB + .1:.1f} would keep them'))
            self._warn_too_large(image, have, remedy)
            return
        self._tell(image, 'of memory')
        self.store = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8).view(self.n, *image.shape)
        self.filled = torch.frombuffer(mmap.mmap(-1, self.n), dtype=torch.bool)
        _count(size)
        weakref.finalize(self, _count, -size)

    def _tell(self, image: Tensor, where: str) -> None:
        "Say what is about to be taken, where it is much"
        if (size := self.n * image.nbytes / GB) >= self.tell_gb:
            print(f'{self.n} decoded images of {"×".join(map(str, image.shape))} take up to {size:.1f} GB {where} '
                  '(cache=False decodes them anew for every episode)')

    def _warn_too_large(self, image: Tensor, have: str, remedy: str) -> None:
        shape, size = '×'.join(map(str, image.shape)), self.n * image.nbytes
        warnings.warn(f'{self.n} images of {shape} need {size/GB:.1f} GB, more than the {have}: they are decoded anew for every '
                      f'episode. {remedy}, cache=False silences this', stacklevel=5)

    def _in_file(self, folder: Path, image: Tensor, load: Load, identity: Callable[[], str]) -> None:
        "Open the file of these images, after building it where there is none"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder/f'{self._key(load, identity())}.npy'
        if not file.exists():
            # whoever comes while another process builds, waits for it; a dead process holds no lock
            with FileLock(file.with_suffix('.lock')):
                if not file.exists() and not self._build_file(file, image, load): return
        self._open(np.load(file, mmap_mode='c'))  # private: nothing that is done to a batch reaches the file

    def _key(self, load: Load, identity: str) -> str:
        "Changes with the identity and with the pixels of eight images, so that an edited transform is noticed as well"
        digest = hashlib.sha256(f'{self.n} {identity}'.encode())
        for i in np.linspace(0, self.n - 1, min(8, self.n), dtype=int).tolist(): digest.update(load(i).numpy().tobytes())
        return digest.hexdigest()[:32]

    def _open(self, array: np.ndarray) -> None:
        self.store, self.filled = torch.from_numpy(array), torch.ones(self.n, dtype=torch.bool)

    def _build_file(self, file: Path, image: Tensor, load: Load) -> bool:
        "Decode all images into a file beside it that takes its name when it is whole; whether there is room"
        size, free = self.n * image.nbytes, shutil.disk_usage(file.parent).free
        self.usable = size <= free
        if not self.usable:
            self._warn_too_large(image, f'{free/GB:.2g} GB that are free in {file.parent}', 'Make room')
            return False
        self._tell(image, f'in {file.parent}')
        with atomic_write(file) as part:
            array = np.lib.format.open_memmap(part, mode='w+', dtype=np.uint8, shape=(self.n, *image.shape))
            self._open(array)
            self.filled.zero_()
            try: self._fill(range(self.n), load, f'{size/GB:.2f} GB to {file.parent}')
            finally: self.store = torch.empty(0, dtype=torch.uint8)
            array.flush()
        return True

    def _fill(self, idxs: Sequence[int], load: Load, progress: bool | str = False) -> None:
        "Decode the images at `idxs`; under a progress bar that says how much they take"
        bar: Any = idxs
        if progress:
            bar = progress_bar(idxs, leave=False)
            bar.comment = progress if isinstance(progress, str) else f'{len(idxs) * self.store[0].nbytes/GB:.2f} GB to memory'
        with ThreadPoolExecutor(min(8, defaults.cpus)) as pool:
            for i, image in zip(bar, pool.map(load, idxs), strict=True):
                if image.shape != self.store.shape[1:]:
                    raise ValueError(f'image {i} has the shape {tuple(image.shape)}, the others {tuple(self.store.shape[1:])}: '
                                     'item_tfms must bring all to one size')
                self.store[i] = image.as_subclass(Tensor)
                self.filled[i] = True


def _count(size: int) -> None:
    "Add `size` bytes to what all caches take"
    ImageCache._used += size


def free_memory() -> float:
    "Bytes of memory that this process may still take; infinite where the system does not say"
    try: lines = Path('/proc/meminfo').read_text().splitlines()
    except OSError: return float('inf')
    return next((1024. * int(line.split()[1]) for line in lines if line.startswith('MemAvailable')), float('inf'))
