"Memory for batches: large pages that are used again"
from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ['empty_batch']

MB = 2**20
SMALL = MB
"Bytes below which a batch costs little anew"


class Buffers:
    """Memory of the last batches, to be used again once they are gone.

    Whoever has a tensor, view, array or storage on a buffer holds, at the end of the chain, the array that a batch was made of.
    When that array is gone, so are all of them.
    """
    def __init__(self,
        most_bytes: int = 512 * MB, # Kept at most, in use or free; what was used longest ago is forgotten first
    ):
        self.most_bytes = most_bytes
        self.kept: list[tuple[np.ndarray, weakref.ref]] = []  # with the array on it that its batch is made of
        self.lock = threading.Lock()

    def take(self,
        n_bytes: int, # Size
    ) -> np.ndarray:
        "An array of bytes that nobody else has. A tensor must be made of it itself: NumPy's views would not hold it"
        with self.lock:
            fitting = (i for i, (buffer, user) in enumerate(self.kept)
                       if user() is None and n_bytes <= buffer.nbytes <= 1.25 * n_bytes)
            at = next(fitting, None)
            buffer = np.empty(n_bytes, np.uint8) if at is None else self.kept.pop(at)[0]
            user = buffer[:n_bytes]
            self.kept.append((buffer, weakref.ref(user)))
            while sum(b.nbytes for b, _ in self.kept) > self.most_bytes: self.kept.pop(0)
        return user


_buffers = Buffers()
if hasattr(os, 'register_at_fork'):  # a child must not find the lock taken by a thread that it does not have
    os.register_at_fork(before=_buffers.lock.acquire, after_in_parent=_buffers.lock.release,
                        after_in_child=_buffers.lock.release)


def empty_batch(
    shape: Sequence[int], # Of the batch
    dtype: torch.dtype, # Of its numbers
    pinned: bool = False, # In page-locked memory, which a CUDA device reads while the host goes on
) -> Tensor:
    """`torch.empty` on the CPU, in the memory of a batch that is gone, or else in large pages where the system gives them.

    A batch of a few dozen MB comes from the system each time, and page by page of 4 kB that takes several times as long as
    writing to it. NumPy asks for large pages, PyTorch only where an environment variable says so. Pinned memory PyTorch itself
    keeps, for it knows which copies are still under way.
    """
    n_bytes = math.prod(shape) * dtype.itemsize
    if pinned or n_bytes < SMALL: return torch.empty(tuple(shape), dtype=dtype, pin_memory=pinned)
    return torch.from_numpy(_buffers.take(n_bytes)).view(dtype).view(tuple(shape))
