"Reads fields and images from the body of a request: in memory, within limits, one image after another"
from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from PIL import Image
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import Request

from .limits import MB, Limits, Refused

__all__ = ['Uploads', 'text_of', 'files_of', 'images_of']

DECODE = Path(__file__).with_name('decode.py')
SLOWEST = 100_000 # bytes per second


class _InMemory(MultiPartParser):
    "Starlette's parser, which here writes nothing to the disk"
    spool_max_size = sys.maxsize


class Uploads:
    "Forms of all visitors, read within `limits`"
    def __init__(self, limits: Limits):
        self.limits, self.held = limits, 0

    @asynccontextmanager
    async def form(self,
        request: Request, # A request with a body that was not read yet
    ) -> AsyncIterator[FormData]:
        """Read the fields and files of the body; they stay in memory as long as the `async with` block runs.

        Raises `Refused` if the body is no form (400), too slow (408) or too large (413), or if there are too many uploads (503).
        """
        mine, limits = 0, self.limits

        async def pieces() -> AsyncIterator[bytes]:
            nonlocal mine
            async for piece in request.stream():
                mine += len(piece)
                self.held += len(piece)
                clock.deadline += len(piece) / SLOWEST
                if mine > limits.body: raise Refused(f'more than {limits.body / MB:.3g} MB at once', 413)
                if self.held > 4 * limits.body: raise Refused('too many uploads at once: try again in a moment', 503)
                yield piece

        try:
            with anyio.move_on_after(limits.patience) as clock: form = await self._parsed(request, pieces())
            if clock.cancelled_caught: raise Refused('the upload took too long', 408)
            try: yield form
            finally: await form.close()  # a thread that is left with them stops at the next image
        finally: self.held -= mine

    async def _parsed(self, request: Request, pieces: AsyncIterator[bytes]) -> FormData:
        length = request.headers.get('content-length', '0')
        if not length.isdecimal(): raise Refused('the length of the body is no number')
        if int(length[:20]) > self.limits.body: raise Refused(f'more than {self.limits.body / MB:.3g} MB at once', 413)
        kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
        parser = {'multipart/form-data': _InMemory, 'application/x-www-form-urlencoded': FormParser}.get(kind)
        if parser is None: raise Refused('the body is no form: send it as multipart/form-data')
        try: return await parser(request.headers, pieces, max_fields=8, max_part_size=4096).parse()  # type: ignore[arg-type]
        except (MultiPartException, FormParserError) as e: raise Refused('the form cannot be read') from e


def text_of(
    form: FormData, # Form of a request
    field: str, # Name of the field
) -> str:
    "The text of a field. Raises `Refused` if the field is missing, repeated or a file"
    found = form.getlist(field)
    if len(found) != 1 or not isinstance(found[0], str): raise Refused(f'one text field “{field}” is needed')
    return found[0]


def files_of(
    form: FormData, # Form of a request
    limits: Limits, # What is accepted
) -> list[UploadFile]:
    "The files of the field `files`; their names are not used. Raises `Refused` for no file, too many and too large ones"
    found = form.getlist('files')
    files = [f for f in found if isinstance(f, UploadFile)]
    if len(files) < len(found): raise Refused('the field “files” is for files, not text')
    files = [f for f in files if f.size]  # a browser sends an empty one where none was chosen
    if not files: raise Refused('no image was chosen')
    if len(files) > limits.files: raise Refused(f'{len(files)} images at once: at most {limits.files}', 413)
    for i, f in enumerate(files, 1):
        if (f.size or 0) > limits.file_mb * MB: raise Refused(f'image {i} is larger than {limits.file_mb:g} MB', 413)
    return files


def images_of(
    files: list[UploadFile], # Result of `files_of`
    limits: Limits, # What is accepted
    target: int, # Side in pixels that images are needed at
    orient: bool = True, # Turn images as their EXIF orientation says
) -> Iterator[Image.Image]:
    "Decode one image after another. Raises `Refused` for an image that is too large, broken or of another format"
    settings = json.dumps(dict(formats=limits.formats, side=limits.side, pixels=limits.pixels, target=target, orient=orient,
                               memory_mb=limits.memory_mb, seconds=limits.seconds))
    for i, f in enumerate(files, 1): yield _decoded(f.file.read(), f'image {i}', settings, limits)


def _decoded(data: bytes, name: str, settings: str, limits: Limits) -> Image.Image:
    try: run = subprocess.run([sys.executable, DECODE, settings], input=data, capture_output=True, timeout=60 + limits.seconds)
    except subprocess.TimeoutExpired: raise Refused(f'{name} takes too much time', 413) from None
    if run.returncode: raise Refused(f'{name} takes too much memory or time', 413)
    head, _, pixels = run.stdout.partition(b'\n')
    found = json.loads(head)
    if 'too_large' in found: raise Refused(f'{name} {found["too_large"]}', 413)
    if 'unreadable' in found:
        heic = ' HEIC files have to be saved as JPEG first.' if data[4:8] == b'ftyp' and data[8:12] != b'avif' else ''
        raise Refused(f'{name} cannot be read: {", ".join(limits.formats)} files are accepted.{heic}', 415)
    return Image.frombytes(found['mode'], found['size'], pixels)
