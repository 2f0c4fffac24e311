"Opening images of every kind, and checking them before the training starts"
# No `from __future__ import annotations`: fastai reads the annotation of `open_image` to know where new items enter.
import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.vision.core import PILImage
from fastcore.parallel import parallel
from PIL import Image

__all__ = ['open_image', 'DatasetImage', 'broken_images', 'checked_images']

@dataclass(frozen=True, slots=True)
class DatasetImage:
    "Image number `index` of a torchvision-style dataset, opened when it is used"
    dataset: Any
    index: int

    def open(self) -> Any: return self.dataset[self.index][0]
    def __str__(self) -> str: return f'image {self.index} of {type(self.dataset).__name__}'


ImageSource = Path | str | bytes | np.ndarray | torch.Tensor | Image.Image | DatasetImage


def _from_array(x: np.ndarray | torch.Tensor) -> Image.Image:
    "An image from `(H, W)`, `(H, W, C)` or `(C, H, W)`; floats count from 0 to 1"
    a = np.asarray(x.detach().cpu() if isinstance(x, torch.Tensor) else x)
    if a.ndim == 3 and isinstance(x, torch.Tensor): a = a.transpose(1, 2, 0)
    if a.ndim == 3 and a.shape[2] == 1: a = a[..., 0]
    if a.dtype.kind == 'f': a = (a.clip(0, 1) * 255).round()
    elif a.dtype == np.uint16: a = a / 257
    return Image.fromarray(a.astype(np.uint8))


def _to_rgb(im: Image.Image) -> Image.Image:
    "8-bit RGB: 16 bits scaled down instead of clipped, transparent parts shown on white"
    if im.mode.startswith(('I', 'F')):
        a = np.asarray(im, dtype=np.float64)
        im = Image.fromarray((a / (257 if a.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
    if im.mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La') or 'transparency' in im.info:
        im = im.convert('RGBA')
        im = Image.alpha_composite(Image.new('RGBA', im.size, 'white'), im)
    return im.convert('RGB')


def _name(source: Any) -> str: return str(source) if isinstance(source, Path | str | DatasetImage) else type(source).__name__


def open_image(
    fn: ImageSource, # Arrays `(H, W)` or `(H, W, C)`, tensors `(C, H, W)`: bytes, or floats from 0 to 1
) -> PILImage:
    """An RGB image from a file, its bytes, an array, a tensor or a PIL image.

    Greyscale, palette, CMYK and 16-bit images are converted, transparency is shown on white; an EXIF orientation is left as
    it is, as in fastai. Raises `FileNotFoundError` or `OSError` naming a file that is missing or broken.
    """
    source = fn.open() if isinstance(fn, DatasetImage) else fn
    if isinstance(source, np.ndarray | torch.Tensor): source = _from_array(source)
    try:
        if isinstance(source, bytes): source = io.BytesIO(source)
        return PILImage(_to_rgb(source if isinstance(source, Image.Image) else Image.open(source)))
    except FileNotFoundError: raise FileNotFoundError(f'image not found: {_name(fn)}') from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise OSError(f'{_name(fn)} can not be read as an image: {e}') from e


def _why_broken(fn: Path) -> str | None:
    "Why an image file can not be decoded, or None; JPEGs are decoded at the smallest scale"
    try:
        with Image.open(fn) as im:
            im.draft(im.mode, (32, 32))
            im.load()
    except Exception as e: return f'{type(e).__name__}: {e}'  # PIL raises whatever the decoder meets
    return None


def broken_images(
    files: Iterable[Path], # Image files
) -> dict[Path, str]:
    "The files that can not be decoded, with the reason; tried in parallel"
    files = list(files)
    reasons = parallel(_why_broken, files, threadpool=True, n_workers=8, progress=len(files) > 5000)
    return {f: why for f, why in zip(files, reasons, strict=True) if why}


def checked_images(
    files: list[Path], # Image files
    verify: bool | str = True, # True: an error names the broken files; 'skip': a warning does; False: no check
) -> list[bool]:
    "Which of `files` to keep. Raises `OSError` naming the broken ones, unless `verify` says otherwise"
    if verify not in (True, False, 'skip'): raise ValueError(f"verify={verify!r}: True, False or 'skip'")
    broken = broken_images(files) if verify else {}
    if broken:
        listed = '\n'.join(f'  {f}: {why}' for f, why in list(broken.items())[:10])
        message = f'{len(broken)} of {len(files)} images can not be decoded:\n{listed}' + ('\n  …' if len(broken) > 10 else '')
        if verify is True: raise OSError(f"{message}\nRemove them, or pass verify='skip' to leave them out")
        warnings.warn(f'left out: {message}', stacklevel=3)
    return [f not in broken for f in files]
