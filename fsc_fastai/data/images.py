"Opening images of every kind in one way, and checking them before training"
# No `from __future__ import annotations`: fastai reads the annotations of `OpenImage` to know where new items enter.
import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from fastai.data.core import Datasets
from fastai.vision.core import PILImage
from fastcore.parallel import parallel
from fasttransform.transform import Transform
from PIL import Image

from ..pixels import PixelError, declared_white, from_array, is_deep, oriented, to_rgb

__all__ = ['OpenImage', 'open_image', 'DatasetImage', 'broken_images', 'checked_images']

@dataclass(frozen=True, slots=True)
class DatasetImage:
    "Image number `index` of a torchvision-style dataset, opened when it is used"
    dataset: Any
    index: int
    key: int | str = 0 # Key of the image in an item

    def open(self) -> Any: return self.dataset[self.index][self.key]
    def __str__(self) -> str: return f'image {self.index} of {type(self.dataset).__name__}'


ImageSource = Path | str | bytes | np.ndarray | torch.Tensor | Image.Image | DatasetImage


def _name(source: Any) -> str: return str(source) if isinstance(source, Path | str | DatasetImage) else type(source).__name__


def _picture(source: Any) -> Image.Image:
    "A PIL image, loaded"
    if isinstance(source, bytes): source = io.BytesIO(source)
    im = source if isinstance(source, Image.Image) else Image.open(source)
    im.load()
    return im


def _reason(e: Exception) -> str:
    "Why an image cannot be opened, with the remedy where PIL alone has a reason"
    if not isinstance(e, Image.DecompressionBombError): return str(e)
    return f'{e} Make it smaller; or, where you trust its origin, raise PIL.Image.MAX_IMAGE_PIXELS'


def open_image(
    fn: ImageSource, # Arrays `(H, W)` or `(H, W, C)`, tensors `(C, H, W)`: bytes, or floats from 0 to 1
    orient: bool = True, # Turn the image as its EXIF orientation says
    white: float | None = None, # The value of white in samples that are no bytes; None: as their type says, see `as_bytes`
) -> PILImage:
    """An RGB image from a file, its bytes, an array, a tensor or a PIL image.

    Greyscale, palette, CMYK and 16-bit images are converted; transparency becomes white. Raises `FileNotFoundError` or `OSError`,
    which names the file, if it is missing or broken, and `PixelError` if the meaning of its samples is unknown.
    """
    source = fn.open() if isinstance(fn, DatasetImage) else Path(fn).expanduser() if isinstance(fn, str | Path) else fn
    try:
        if isinstance(source, np.ndarray | torch.Tensor): return PILImage(to_rgb(from_array(source, white)))
        im = _picture(source)
        if white is None: white = declared_white(im)
        return PILImage(to_rgb(oriented(im) if orient else im, white))
    except FileNotFoundError: raise FileNotFoundError(f'image not found: {_name(fn)}') from None
    except PixelError as e: raise PixelError(f'{_name(fn)}: {e}') from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise OSError(f'{_name(fn)} cannot be read as an image: {_reason(e)}') from e


class OpenImage(Transform):
    "`open_image` with its settings, as the first transform of the loaders"
    input_types = get_args(ImageSource)

    def __init__(self,
        orient: bool = True, # Turn images as their EXIF orientation says
        white: float | None = None, # The value of white, see `open_image`
    ):
        super().__init__()
        self.orient, self.white = orient, white

    def encodes(self, fn: ImageSource): return open_image(fn, self.orient, self.white)


def opener_of(
    dataset: Any, # Dataset of a loader
) -> OpenImage | None:
    """The `OpenImage` of a dataset; None if the dataset opens images in another way.

    An `OpenImage` replaces fastai's `PILImage.create` of `ImageBlock`, which ignores orientation and truncates 16 bits.
    """
    if not isinstance(dataset, Datasets): return None
    tfms = dataset.tls[0].tfms.fs  # which all sets of the data share
    for i, tfm in enumerate(tfms):
        if isinstance(tfm, OpenImage): return tfm
        if getattr(tfm, 'name', '') == 'PILBase.create' and tfm.encodes.methods[0].implementation == PILImage.create:
            tfms[i] = OpenImage()
            return tfms[i]
    return None


def _why_broken(fn: Path, white: float | None) -> str | None:
    "Why an image file cannot be used, or None; JPEGs are decoded at the smallest scale"
    try:
        with Image.open(fn) as im:
            im.draft(im.mode, (32, 32))
            im.load()
            if is_deep(im): to_rgb(im, declared_white(im) if white is None else white)
    except Exception as e: return f'{type(e).__name__}: {_reason(e)}'  # PIL raises whatever the decoder meets
    return None


def broken_images(
    files: Iterable[Path], # Image files
    white: float | None = None, # The value of white, see `open_image`
) -> dict[Path, str]:
    "The files that cannot be used, each with the reason; they are tried in parallel"
    files = list(files)
    reasons = parallel(_why_broken, files, white=white, threadpool=True, n_workers=8, progress=len(files) > 5000)
    return {f: why for f, why in zip(files, reasons, strict=True) if why}


def checked_images(
    files: list[Path], # Image files
    verify: bool | str = True, # True: raise an error for broken files; 'skip': leave them out with a warning; False: no check
    white: float | None = None, # The value of white, see `open_image`
) -> list[bool]:
    "The files to keep. Raises `OSError`, which names broken files, unless `verify` says otherwise"
    if verify not in (True, False, 'skip'): raise ValueError(f"verify={verify!r}: True, False or 'skip'")
    broken = broken_images(files, white) if verify else {}
    if broken:
        listed = '\n'.join(f'  {f}: {why}' for f, why in list(broken.items())[:10])
        message = f'{len(broken)} of {len(files)} images cannot be used:\n{listed}' + ('\n  …' if len(broken) > 10 else '')
        if verify is True: raise OSError(f"{message}\nMend or remove them, or pass verify='skip' to leave them out")
        warnings.warn(f'left out: {message}', stacklevel=3)
    return [f not in broken for f in files]
