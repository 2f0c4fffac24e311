"Memory for batches in large pages"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ['empty_batch']


def empty_batch(
    shape: Sequence[int], # Of the batch
    dtype: Any, # Of NumPy, such as `np.uint8`
) -> Tensor:
    """`torch.empty` on the CPU in large pages, where the system gives them.

    A batch of a few dozen MB comes from the system each time, and page by page of 4 kB that takes several times as long as
    writing to it. NumPy asks for large pages, PyTorch only where an environment variable says so.
    """
    return torch.from_numpy(np.empty(tuple(shape), dtype))
