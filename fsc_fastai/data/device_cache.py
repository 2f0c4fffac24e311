"Decoded images kept on the device that trains"
from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..tensors import usable_device
from .cache import GB, ImageCache, Load, free_memory

__all__ = ['DeviceCache', 'named_device', 'room_on']


class DeviceCache(ImageCache):
    """An `ImageCache` on a device: episodes are gathered there, and only the positions of their images and the labels are sent.

    The images may take half of the memory that is free on the device when the first one is asked for; the other half is left for
    training. If they need more, they are kept in the memory of the host, as by `ImageCache`, and a warning says why. Worker
    processes can't reach a device, so a loader with its images there uses none. If a loader's own device is another one, its
    batches are copied to it.
    """
    share = .5
    resident = False # Are the images on the device?

    def __init__(self,
        n: int, # Number of images in the dataset
        device: torch.device, # Device to keep them on
    ):
        super().__init__(n)
        self.device = device

    def __reduce__(self) -> tuple: return type(self), (self.n, self.device)

    @property
    def wanted(self) -> torch.device:
        "The device that was asked for, whether the images are there or not"
        return self.device

    @property
    def where(self) -> str:
        "Where the images are: on the device, or in memory"
        return str(self.device) if self.resident else super().where

    @property
    def takes_workers(self) -> bool:
        "Can worker processes load images? Not if these are on the device"
        return not self.resident

    def get(self, idxs: Sequence[int], load: Load, pinned: bool = False) -> Tensor:
        "The images at `idxs` as one batch `(n, C, H, W)` on the device; missing ones are loaded first"
        if not self.resident: return super().get(idxs, load, pinned)
        at = self._loaded(idxs, load)
        if self.device.type == 'cuda': at = at.pin_memory()  # from which a device reads while the host goes on
        return self.store.index_select(0, at.to(self.device, non_blocking=at.is_pinned())).as_subclass(self.type)

    def _in_memory(self, image: Tensor) -> None:
        if why := self._why_not(self.n * image.nbytes): return self._on_host(image, why)
        self._tell(image, f'on {self.device}')
        try: self.store = torch.empty((self.n, *image.shape), dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError: return self._on_host(image, 'which has no room for them in one piece')
        self.filled, self.resident = torch.zeros(self.n, dtype=torch.bool), True
        return None

    def _why_not(self, size: int) -> str:
        "Why images of `size` bytes are not kept on the device; empty if they are"
        try: free = room_on(usable_device(self.device))
        except ValueError as e: return str(e)
        if size <= self.share * free: return ''
        return f'they need {size/GB:.1f} GB, more than {self.share:.0%} of the {free/GB:.2g} GB that are free there'

    def _on_host(self, image: Tensor, why: str) -> None:
        warnings.warn(f'{self.n} decoded images are not kept on {self.device}: {why}. They are kept in the memory of the host; '
                      'cache=True silences this', stacklevel=5)
        super()._in_memory(image)


def named_device(
    cache: Any, # Argument `cache` of a loader
) -> torch.device | None:
    """The device that `cache` is or names, such as `'cuda:1'`; None for anything else, such as a folder.

    Raises `ValueError` if this machine has no such device. A folder with the name of a device has to be given as a `Path`.
    """
    try: device = torch.device(cache) if isinstance(cache, str | torch.device) else None
    except RuntimeError: return None  # the name of a folder
    if device is None: return None
    try: usable_device(device)
    except ValueError as e: raise ValueError(f'cache={str(cache)!r}: {e}. cache=True keeps images in memory') from e
    return device


def room_on(
    device: torch.device, # A device of this machine
) -> float:
    "Free memory of a device in bytes; that of the host if a device does not report its own"
    if device.type in ('cpu', 'meta'): return free_memory()
    ask: Callable | None = getattr(torch.get_device_module(device), 'mem_get_info', None)
    return ask(device)[0] if ask else free_memory()
