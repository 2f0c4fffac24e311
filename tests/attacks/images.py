"Image files that cost their sender little and their reader much, and files that are broken"
import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image

FORMATS = ('JPEG', 'PNG', 'WEBP', 'AVIF', 'BMP', 'GIF', 'TIFF')


def pick(rng, options): return options[int(rng.integers(len(options)))]
def up_to(rng, most, least=0): return int(rng.integers(least, most))


def encoded(im, form, **kwargs):
    buffer = io.BytesIO()
    im.save(buffer, form, **kwargs)
    return buffer.getvalue()


def png(*chunks):
    "A PNG file of chunks `(name, data)`"
    framed = lambda name, data: struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    return b'\x89PNG\r\n\x1a\n' + b''.join(framed(*chunk) for chunk in chunks)


@functools.cache
def flat_png(width, height, claimed=None, depth=1, colour=0):
    "A black image, or one whose header claims another size than its pixels have"
    squeezed, rows = zlib.compressobj(9), min(height, 4000)
    row = bytes(1 + (width * depth * (3 if colour == 2 else 1) + 7) // 8)
    pixels = b''.join(squeezed.compress(row) for _ in range(rows)) + squeezed.flush()
    head = struct.pack('>IIBBBBB', *(claimed or (width, height)), depth, colour, 0, 0, 0)
    return png((b'IHDR', head), (b'IDAT', pixels), (b'IEND', b''))


def text_png(megabytes, chunks=1):
    "A small image with compressed texts"
    text = (b'zTXt', b'k\0\0' + zlib.compress(bytes(megabytes << 20), 9))
    head = (b'IHDR', struct.pack('>IIBBBBB', 8, 8, 8, 0, 0, 0, 0))
    return png(head, *[text] * chunks, (b'IDAT', zlib.compress(bytes(72))), (b'IEND', b''))


def many_scans(width, height, scans=5000):
    "A progressive JPEG whose last scan comes thousands of times: each is a few bytes, and a walk over the whole image"
    file = encoded(Image.new('RGB', (width, height)), 'JPEG', progressive=True)
    last = file[file.rindex(b'\xff\xda'):-2]
    return file[:-2] + last * min(scans, 9_000_000 // len(last)) + b'\xff\xd9'


def tags(n, size, entries=None):
    "A TIFF directory, as in EXIF, whose every entry is the same long piece"
    start = 14 + 12 * n
    each = b''.join(struct.pack('<HHII', 40_000 + i, 1, size, start) for i in range(n))
    return b'II*\0' + struct.pack('<IH', 8, entries or n) + each + bytes(4 + size)


def bombs():
    "Functions that take a random generator and give the bytes of a file"
    tiny = Image.new('RGB', (8, 8))
    return [
        lambda rng: flat_png(1, up_to(rng, 6_000_000, 20_000)),
        lambda rng: flat_png(up_to(rng, 60_000_000, 20_000), 1),
        lambda rng: flat_png(16_000, 16_000),
        lambda rng: flat_png(9_000, 2_000, depth=8, colour=2),
        lambda rng: flat_png(4_000, 4_000, depth=16, colour=2),
        lambda rng: flat_png(100, 100, (2**31 - 1, 2**31 - 1)),
        lambda rng: flat_png(100, 100, (3_000, 3_000)),
        lambda rng: text_png(60),
        lambda rng: text_png(9, up_to(rng, 100, 1)),
        lambda rng: many_scans(up_to(rng, 4_000, 500), 4_000),
        lambda rng: many_scans(16_000, 16_000 // up_to(rng, 9, 2)),
        lambda rng: encoded(Image.new('F', (up_to(rng, 9_000, 5_000),) * 2), 'TIFF', compression='tiff_deflate'),
        lambda rng: tags(up_to(rng, 2_000, 1), 5_000_000),
        lambda rng: tags(10, 1_000, 65_535),
        lambda rng: encoded(tiny, 'PNG', exif=b'Exif\0\0' + tags(up_to(rng, 2_000, 1), 2_000_000)),
        lambda rng: encoded(tiny, 'WEBP', exif=b'Exif\0\0' + tags(500, 1_000_000)),
        lambda rng: encoded(Image.new('RGB', (16_383, 976)), 'WEBP'),
        lambda rng: encoded(Image.new('L', (30_000, 400)), 'GIF'),
        lambda rng: encoded(tiny, 'GIF', save_all=True, append_images=[Image.new('RGB', (8, 8), (i, 0, 0)) for i in range(200)]),
        claimed_bmp, claimed_gif, claimed_webp, claimed_avif]


def claimed_bmp(rng):
    file = encoded(Image.new('RGB', (8, 8)), 'BMP')
    return file[:18] + struct.pack('<II', *rng.integers(1, 2**31, 2).tolist()) + file[26:]


def claimed_gif(rng):
    file = encoded(Image.new('L', (8, 8)), 'GIF')
    return file[:6] + struct.pack('<HH', *rng.integers(1, 65_536, 2).tolist()) + file[10:]


def claimed_webp(rng):
    file = bytearray(encoded(Image.new('RGBA', (8, 8)), 'WEBP', exif=b'Exif\0\0' + tags(1, 9), lossless=True))
    at = file.index(b'VP8X') + 12
    file[at:at + 6] = rng.integers(0, 256, 6, dtype=np.uint8).tobytes()
    return bytes(file)


def claimed_avif(rng):
    file, size = encoded(Image.new('RGB', (64, 64)), 'AVIF'), lambda *sides: b'ispe\0\0\0\0' + struct.pack('>II', *sides)
    return file.replace(size(64, 64), size(*rng.integers(1, 60_000, 2).tolist()))


def mutated(rng, file, most=8):
    "A file with pieces of it changed, cut off, repeated or put elsewhere"
    file = bytearray(file)
    for _ in range(int(rng.integers(1, most + 1))):
        a, b = sorted(rng.integers(0, len(file) + 1, 2).tolist())
        match int(rng.integers(6)):
            case 0 | 1 | 2: file[a:a + 1] = rng.integers(0, 256, 1, dtype=np.uint8).tobytes()
            case 3: del file[a:min(b, a + 64)]
            case 4: file[a:a] = file[a:min(b, a + 64)]
            case 5: file[a:a + 4] = pick(rng, [bytes(4), b'\xff' * 4, b'\x7f\xff\xff\xff', b'\xff\xff\xff\x7f'])
        if not file: file += b'\0'
    return bytes(file[:int(rng.integers(1, len(file) + 1))] if rng.random() < .1 else file)
