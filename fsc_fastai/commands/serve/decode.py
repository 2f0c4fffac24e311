"""One image, from the bytes of a file to pixels, in a process of its own: `python decode.py SETTINGS < file > pixels`.

If a hostile file makes a decoder hang, crash or exhaust memory, only this process suffers. It imports only Pillow, to start fast.
"""
import io
import json
import signal
import sys
from typing import Any

from PIL import Image, ImageOps

__all__ = ['decode', 'limit_process']


def limit_process(
    memory_mb: int, # Most address space in MB; Python itself takes about 100 of it
    seconds: float, # Most processor time
) -> None:
    "Limit the memory and the processor time of this process; without effect on Windows"
    try:
        import resource
    except ImportError: return  # Windows
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20,) * 2)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def decode(
    data: bytes, # Content of an image file
    formats: list[str], # Formats to accept, by PIL's names
    side: int, # Largest width and height to accept
    pixels: int, # Most pixels to accept
    target: int, # Side in pixels that the image is needed at
    orient: bool = True, # Turn it as its EXIF orientation says
) -> Image.Image:
    """Decode an image, which keeps its mode but not a palette.

    An image at least four times as large as needed is shrunk by a whole factor, as PIL's `reducing_gap` does. Raises
    `OverflowError` for an image that is too large, before decoding it, and PIL's own errors for a broken one.
    """
    Image.MAX_IMAGE_PIXELS = None  # ours is stricter, and knows of `draft`
    Image.init()
    im = Image.open(io.BytesIO(data), formats=[f for f in formats if f in Image.OPEN])
    if max(im.size) > side: raise OverflowError(f'is larger than {side:,} pixels a side')
    im.draft(None, (2 * target, 2 * target))
    if im.width * im.height > pixels: raise OverflowError(f'has more than {pixels:,} pixels')
    im.load()
    return _reduced(_plain(_turned(im) if orient else im), target)


def _turned(im: Image.Image) -> Image.Image:
    try: return ImageOps.exif_transpose(im)
    except Exception: return im  # an orientation that cannot be read is none


def _plain(im: Image.Image) -> Image.Image:
    "The image without a palette"
    if 'transparency' in im.info or im.mode == 'PA': return im.convert('RGBA')
    if im.mode == 'P': return im.convert('RGB')
    return im.convert('L') if im.mode == '1' else im


def _reduced(im: Image.Image, target: int) -> Image.Image:
    factor = min(im.size) // (2 * target)
    if factor < 2: return im
    if im.mode.startswith('I;16'): return im.convert('I').reduce(factor).convert('I;16')
    return im.reduce(factor)


def main() -> None:
    "Write a line of JSON with mode and size and then the pixels, or only a line of JSON with what is wrong"
    settings = json.loads(sys.argv[1])
    data = sys.stdin.buffer.read()
    limit_process(settings.pop('memory_mb'), settings.pop('seconds'))
    head: dict[str, Any]
    try: im = decode(data, **settings)
    except OverflowError as e: head, body = dict(too_large=str(e)), b''
    except MemoryError: head, body = dict(too_large='takes too much memory'), b''
    except Exception: head, body = dict(unreadable=True), b''  # decoders raise whatever they meet in a broken file
    else: head, body = dict(mode=im.mode, size=im.size), im.tobytes()
    sys.stdout.buffer.write(json.dumps(head).encode() + b'\n' + body)


if __name__ == '__main__': main()
