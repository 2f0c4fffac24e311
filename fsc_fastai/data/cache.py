"Decoded images kept as bytes, in memory or in a memory-mapped file"
from __future__ import annotations

import hashlib
import logging
import mmap
import os
import shutil
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from fastcore.basics import chunked, defaults
from filelock import FileLock
from torch import Tensor

from ..bars import Bar
from ..files import atomic_write

__all__ = ['ImageCache', 'CacheChoice']

log = logging.getLogger(__name__)

GB = 1024**3
CacheChoice = bool | float | str | os.PathLike | torch.device | None
"""Where decoded images are kept: True for memory, a number for memory of at most so many GB, a folder for a file in it that later
runs and other processes share, a device or its name (`'cuda'`, `'cuda:1'`) for its memory if they fit, None for memory where that
is possible, False for nowhere"""

Load = Callable[[int], Tensor]


class ImageCache:
    """Keeps the decoded images of a dataset as uint8, so that an episode costs one gather.

    In memory, the cache is allocated at once, filled on demand (in threads) or by `build`, and shared with forked workers. In a
    `folder`, it is one file that is built before its first use, memory-mapped by all processes of the machine and found again by
    later runs; an incomplete or wrong file is built again, but single changed pixels are not noticed. Images are not cached, with
    a warning, if they need more than the limit, the free memory or the free disk, if they are not uint8, and if the folder cannot
    be written. A pickled cache is empty.
    """
    budget_gb, tell_gb, used = 4., 1., 0

    def __init__(self,
        n: int, # Number of images in the dataset
        limit_gb: float | None = None, # Most memory in GB; None: what other caches have left of `budget_gb`
        folder: str | os.PathLike | None = None, # Folder of the file; None: in memory
    ):
        self.n, self.limit_gb, self.usable = n, limit_gb, True
        self.folder = None if folder is None else Path(folder).expanduser()
        self.store, self.filled = torch.empty(0, dtype=torch.uint8), torch.zeros(0, dtype=torch.bool)

    def __reduce__(self): return type(self), (self.n, self.limit_gb, self.folder)
    def __len__(self) -> int: return int(self.filled.sum())

    def __repr__(self) -> str:
        return f'{type(self).__name__}({len(self)} of {self.n} images in {self.where}, {self.store.nbytes/GB:.2f} GB)'

    @property
    def where(self) -> str:
        "The place of the images, in words"
        return 'memory' if self.folder is None else str(self.folder)

    @property
    def takes_workers(self) -> bool:
        "Whether worker processes can share the images"
        return True

    @property
    def wanted(self) -> CacheChoice:
        "The `cache` argument for a loader of other images"
        return self.limit_gb if self.folder is None else self.folder

    def prepare(self,
        load: Load, # Maps a position to an image `(C, H, W)`
        identity: Callable[[], str] = str, # With a folder: a text that identifies items and transforms
    ) -> bool:
        """Allocate the memory or open the file. Returns whether the images can be cached.

        Call it before workers start, so that they share the cache. A file belongs to one `identity` and the pixels of a few
        images, so other images or transforms have another file.
        """
        if not len(self.store) and self.usable and self.n: self._allocate(load, identity)
        return len(self.store) > 0

    def build(self,
        load: Load, # Maps a position to an image `(C, H, W)`
        identity: Callable[[], str] = str, # As for `prepare`
        progress: bool = True, # Show a progress bar
    ) -> bool:
        "Decode all images that are missing. Returns whether the images can be cached"
        if not self.prepare(load, identity): return False
        missing = (~self.filled).nonzero().flatten().tolist()
        if missing: self._fill(missing, load, progress)
        return True

    def get(self,
        idxs: Sequence[int], # Positions in the dataset
        load: Load, # Maps a position to an image `(C, H, W)`
        pinned: bool = False, # In page-locked memory, which a CUDA device can read asynchronously
    ) -> Tensor:
        "The images at `idxs` as one batch `(n, C, H, W)`; missing ones are loaded first"
        at = self._loaded(idxs, load)
        batch = torch.empty((len(at), *self.store.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        torch.index_select(self.store, 0, at, out=batch)  # copies whole images, where indexing goes by the byte
        return batch.as_subclass(self.type)

    def _loaded(self, idxs: Sequence[int], load: Load) -> Tensor:
        "The positions as a tensor, with their images loaded"
        at = torch.as_tensor(idxs)
        missing = np.unique(at[~self.filled[at]].numpy()).tolist()
        if missing: self._fill(missing, load)
        return at

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
        limit = ImageCache.budget_gb/ranks - ImageCache.used/GB if self.limit_gb is None else self.limit_gb
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
            log.warning(f'{self.n} decoded images of {"×".join(map(str, image.shape))} take up to {size:.1f} GB {where} '
                        '(cache=False decodes them anew for every episode)')

    def _warn_too_large(self, image: Tensor, have: str, remedy: str) -> None:
        shape, size = '×'.join(map(str, image.shape)), self.n * image.nbytes
        warnings.warn(f'{self.n} images of {shape} need {size/GB:.1f} GB, more than the {have}: they are decoded anew for every '
                      f'episode. {remedy}, cache=False silences this', stacklevel=5)

    def _in_file(self, folder: Path, image: Tensor, load: Load, identity: Callable[[], str]) -> None:
        "Open the file of these images, after building it where there is none; do without where the folder refuses"
        file = folder/f'{self._key(load, identity())}.npy'
        failed: list[Exception] = []

        def tried(i: int) -> Tensor:
            try: return load(i)
            except Exception as e:
                failed.append(e)
                raise
        try:
            if (array := self._mapped(file, image)) is None:
                folder.mkdir(parents=True, exist_ok=True)
                # whoever comes while another process builds, waits for it; a dead process holds no lock
                with FileLock(file.with_suffix('.lock')):
                    array = self._mapped(file, image)
                    if array is None and self._build_file(file, image, tried): array = self._mapped(file, image)
        except OSError as e:
            if failed: raise failed[0] from None  # an image is broken, not the folder
            warnings.warn(f'cache={str(folder)!r} cannot be used ({e}): images are decoded anew for every episode. Choose a '
                          'folder that can be written; cache=False silences this', stacklevel=4)
            array = None
        self.usable = array is not None
        if array is not None: self.store, self.filled = torch.from_numpy(array), torch.ones(self.n, dtype=torch.bool)

    def _mapped(self, file: Path, image: Tensor) -> np.ndarray | None:
        "The images of a file in memory; None where there is none, or one that is not whole or something else, which is told"
        if not file.exists(): return None
        try: array = np.load(file, mmap_mode='c')  # private: nothing that is done to a batch reaches the file
        except Exception as e: why = f'{type(e).__name__}: {e}'  # numpy raises whatever it meets
        else:
            if getattr(array, 'shape', None) == (self.n, *image.shape) and array.dtype == np.uint8 and array.flags.c_contiguous:
                return array
            why = f'it holds a {type(array).__name__} {getattr(array, "shape", "")}'
        warnings.warn(f'{file} are not the decoded images that it is named after ({why}): it is built again', stacklevel=5)
        return None

    def _key(self, load: Load, identity: str) -> str:
        "Changes with the identity and with the pixels of eight images, so that an edited transform is noticed as well"
        digest = hashlib.sha256(f'{self.n} {identity}'.encode())
        for i in np.linspace(0, self.n - 1, min(8, self.n), dtype=int).tolist(): digest.update(load(i).numpy().tobytes())
        return digest.hexdigest()[:32]

    def _build_file(self, file: Path, image: Tensor, load: Load) -> bool:
        "Decode all images into a file beside it that takes its name when it is whole; whether there is room"
        size, free = self.n * image.nbytes, shutil.disk_usage(file.parent).free
        self.usable = size <= free
        if not self.usable:
            self._warn_too_large(image, f'{free/GB:.2g} GB that are free in {file.parent}', 'Make room')
            return False
        self._tell(image, f'in {file.parent}')
        with atomic_write(file) as part, part.open('wb') as out:
            # written, not mapped: a disk that fills up is an error then, and not the end of the process
            header = dict(descr='|u1', fortran_order=False, shape=(self.n, *image.shape))
            np.lib.format.write_array_header_1_0(out, header)
            for one in self._decoded(range(self.n), load, image.shape, f'{size/GB:.2f} GB to {file.parent}'):
                out.write(one.numpy().tobytes())
        return True

    def _fill(self, idxs: Sequence[int], load: Load, progress: bool = False) -> None:
        "Decode the images at `idxs` into memory"
        comment = f'{len(idxs) * self.store[0].nbytes/GB:.2f} GB to {self.where}' if progress else ''
        for i, image in zip(idxs, self._decoded(idxs, load, self.store.shape[1:], comment), strict=True):
            self.store[i] = image
            self.filled[i] = True

    def _decoded(self, idxs: Sequence[int], load: Load, shape: torch.Size, comment: str = '') -> Iterator[Tensor]:
        "The images at `idxs`, decoded in threads; with a comment under a progress bar that says how much they take"
        with ThreadPoolExecutor(min(8, defaults.cpus)) as pool:
            images = chain.from_iterable(pool.map(load, few) for few in chunked(idxs, 256))  # no more wait to be taken
            for i, image in Bar(len(idxs), bool(comment), comment).through(zip(idxs, images, strict=True)):
                if image.shape != shape:
                    raise ValueError(f'image {i} has the shape {tuple(image.shape)}, the others {tuple(shape)}: '
                                     'item_tfms must bring all to one size')
                yield image.as_subclass(Tensor)


def _count(size: int) -> None:
    "Add `size` bytes to what all caches take"
    ImageCache.used += size


def free_memory() -> float:
    "Bytes of memory that this process may still take; infinity if the system does not say"
    try: lines = Path('/proc/meminfo').read_text().splitlines()
    except OSError: return float('inf')
    return next((1024. * int(line.split()[1]) for line in lines if line.startswith('MemAvailable')), float('inf'))
