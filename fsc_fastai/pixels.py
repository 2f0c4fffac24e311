"Samples of any type as bytes, and pictures of any mode as RGB; an error for samples of unknown meaning"
from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageOps

__all__ = ['PixelError', 'as_bytes', 'declared_white', 'from_array', 'is_deep', 'oriented', 'to_rgb']

DARK = 4096
"Samples of 16 bits that stay below it show as black: below a sixteenth of white; more likely they are of 12 bits or fewer"


class PixelError(ValueError):
    "The meaning of the samples of an image is unknown"


def as_bytes(
    a: np.ndarray, # Samples of any type
    white: float | None = None, # The value of white in samples that are no bytes; None: as their type says
) -> np.ndarray:
    """Samples scaled to bytes by the depth of their type, never by the values that an image happens to have.

    Bytes are unchanged; bool is black and white; floats range from 0 to 1, unsigned 16-bit integers from 0 to 65535, all other
    integers from 0 to 255. Raises `PixelError` for values outside, and for 16-bit images that would be almost black.
    """
    if a.dtype == np.uint8: return a
    if a.dtype == bool: return a * np.uint8(255)
    if a.dtype.kind not in 'uif': raise PixelError(f'samples of type {a.dtype}: integers, floats or bool are wanted')
    sixteen = a.dtype.kind == 'u' and a.dtype.itemsize == 2
    top = white if white is not None else 1 if a.dtype.kind == 'f' else 65535 if sixteen else 255
    low, high, half = float(a.min()), float(a.max()), top / 510
    found = f'{a.dtype} samples from {low:g} to {high:g}'
    if not (-half < low and high < top + half):  # half of the step between two bytes is rounding
        raise PixelError(f'{found}, but 0 is black and {top:g} is white: undo a normalisation, convert to 8 bits, or say what is '
                         'white (white=255 for floats that count like bytes, white=4095 for 12 bits)')
    if sixteen and white is None and 0 < high < DARK:
        raise PixelError(f'{found}, where 16 bits count to 65535: all would be black. Say what is white: white=4095 for 12 bits, '
                         'white=65535 where it is really that dark; or convert to 8 bits')
    return np.rint(a.astype(np.float32) * (255 / top)).clip(0, 255).astype(np.uint8)


def from_array(
    x: Any, # Arrays `(H, W)` or `(H, W, C)`, tensors `(H, W)` or `(C, H, W)`
    white: float | None = None, # The value of white, see `as_bytes`
) -> Image.Image:
    "A picture: grey, grey with alpha, RGB or RGBA by the number of channels. Raises `PixelError` for other shapes"
    is_tensor = not isinstance(x, np.ndarray)
    if is_tensor:  # torch's, which is not imported here: what deploys without it opens images in the same way
        x = x.detach().cpu()
        x = (x.float() if str(x.dtype) == 'torch.bfloat16' else x).numpy()
    if x.ndim not in (2, 3) or 0 in x.shape or x.ndim == 3 and not 1 <= x.shape[0 if is_tensor else 2] <= 4:
        raise PixelError(f'shape {tuple(x.shape)}: arrays are (height, width) or (height, width, channels), '
                         'tensors (height, width) or (channels, height, width), with 1 to 4 channels: transpose it')
    if x.ndim == 3 and is_tensor: x = x.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(as_bytes(x[..., 0] if x.ndim == 3 and x.shape[2] == 1 else x, white)))


def is_deep(im: Image.Image) -> bool:
    "Whether a picture has samples other than bytes"
    return im.mode.startswith(('I', 'F'))


def declared_white(im: Image.Image) -> int | None:
    "What is white by what the file of a deep picture says, None where that follows from the type of its samples"
    if im.mode == 'I' and im.format in ('PNG', 'PPM'): return 65535  # PIL brings their samples there
    bits = getattr(im, 'tag_v2', {}).get(258, (16,))[0]  # of a TIFF: BitsPerSample
    return 2**bits - 1 if im.mode.startswith('I;') and bits < 16 else None


def oriented(im: Image.Image) -> Image.Image:
    "A loaded picture turned as its EXIF orientation says; as it is where the metadata are broken"
    try: return ImageOps.exif_transpose(im) if im.getexif().get(0x112, 1) != 1 else im
    except Exception: return im  # PIL raises whatever it meets there


def to_rgb(
    im: Image.Image, # Loaded
    white: float | None = None, # The value of white, see `as_bytes`
) -> Image.Image:
    "An RGB picture; transparent parts become white. Raises `PixelError` for samples of unknown meaning"
    if is_deep(im): im = Image.fromarray(as_bytes(np.asarray(im), white))
    if im.mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La') or 'transparency' in im.info:
        im = im.convert('RGBA')
        im = Image.alpha_composite(Image.new('RGBA', im.size, 'white'), im)
    return im.convert('RGB')
