"`fsc_serve`: a web page where a few images per class make a classifier. Works without network access"
# Annotations are read by FastHTML and `call_parse` at run time, so this module has no `from __future__ import annotations`.
import base64
import io
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from fastcore.script import call_parse
from PIL import Image

from .cli_classify import load_classifier
from .console import plain_errors
from .extras import extra
from .inference import FewShotClassifier
from .inference.explain import Explanation

with extra('serve'):
    import fasthtml.common as ft
    import uvicorn
    from starlette.datastructures import Headers, UploadFile
    from starlette.middleware import Middleware
    from starlette.responses import HTMLResponse, PlainTextResponse

__all__ = ['Limits', 'create_app', 'fsc_serve']

STYLE = '''
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; color: #1d2530; background: #f4f6f8 }
main { max-width: 60rem; margin: auto; padding: 1rem }
section { background: white; border: 1px solid #d8dee6; border-radius: .6rem; padding: 1rem; margin: 1rem 0 }
h1, h2 { margin: .2rem 0 .6rem } h1 { font-size: 1.5rem } h2 { font-size: 1.1rem }
.row { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; margin: .5rem 0 }
.row > strong { min-width: 7rem } .row > span { width: 6rem; overflow-wrap: anywhere }
.answer { display: flex; gap: 1.2rem; flex-wrap: wrap; border-top: 1px solid #d8dee6; padding: .8rem 0 }
img { border-radius: .3rem; image-rendering: auto } .big { width: 168px; height: 168px } .small { width: 48px; height: 48px }
input, button { font: inherit; padding: .35rem .6rem; border: 1px solid #aab4c0; border-radius: .35rem; background: white }
input[type=file] { border-style: dashed; background: #f4f6f8; padding: 1rem; flex: 1 1 14rem; min-width: 0; max-width: 100% }
button { background: #1f6feb; color: white; border: 0; cursor: pointer } button.quiet { background: #e6eaef; color: #1d2530 }
progress { width: 12rem } .error { background: #fdecea; border-color: #e0796d } small { color: #5b6673 }
'''
# the page needs nothing from anywhere: no scripts, no fonts, no frames
POLICY = ("default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; "
          "base-uri 'none'")


@dataclass(frozen=True)
class Limits:
    "What the page accepts"
    file_mb: float = 10. # Size of one image file
    files: int = 20 # Images at once
    pixels: int = 50_000_000 # Of one image
    classes: int = 50 # In all
    examples: int = 100 # Of one class
    formats: tuple[str, ...] = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF')

    @property
    def body(self) -> int:
        "Bytes of a whole request"
        return int((self.file_mb * self.files + 1) * 2**20)


class Refused(ValueError):
    "What a visitor can mend, and the HTTP status that says so"
    def __init__(self, message: str, status: int = 400): # For the page; of HTTP
        super().__init__(message)
        self.status = status


class BodyLimit:
    "Ends a request that is larger than `limit` bytes, whatever its header says"
    def __init__(self, app: Any, limit: int): self.app, self.limit = app, limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope['type'] != 'http': return await self.app(scope, receive, send)
        too_large = PlainTextResponse(f'more than {self.limit >> 20} MB at once', 413)
        length = Headers(scope=scope).get('content-length', '0')
        if not length.isdigit() or int(length) > self.limit: return await too_large(scope, receive, send)
        received = 0

        async def counted() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get('body', b''))
            if received > self.limit: raise OverflowError
            return message

        try: return await self.app(scope, counted, send)
        except OverflowError: return await too_large(scope, receive, send)


def read_images(
    files: list[UploadFile], # As they were uploaded; their names are not used
    limits: Limits, # What is accepted
) -> list[Image.Image]:
    "The images, decoded. Raises `Refused` for too many, too large or broken ones, and for other types of file"
    files = [f for f in files if f.size]
    if not files: raise Refused('no image was chosen')
    if len(files) > limits.files: raise Refused(f'{len(files)} images at once: at most {limits.files}', 413)
    return [_read_image(f, i, limits) for i, f in enumerate(files, 1)]


def _read_image(file: UploadFile, number: int, limits: Limits) -> Image.Image:
    data = file.file.read(int(limits.file_mb * 2**20) + 1)
    if len(data) > limits.file_mb * 2**20: raise Refused(f'image {number} is larger than {limits.file_mb:g} MB', 413)
    try:
        im = Image.open(io.BytesIO(data), formats=limits.formats)
        if im.width * im.height > limits.pixels: raise Refused(f'image {number} has more than {limits.pixels:,} pixels', 413)
        im.load()
    except Refused: raise
    except Exception as e:  # decoders raise whatever they meet in a broken file
        raise Refused(f'image {number} can not be read: {", ".join(limits.formats)} files are accepted', 415) from e
    return im


def _data_uri(im: Image.Image) -> str:
    buffer = io.BytesIO()
    im.save(buffer, 'PNG')
    return f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _class_row(label: Any, thumbnails: list[Image.Image], n: int) -> Any:
    pictures = [ft.Img(src=_data_uri(im), cls='small', alt=f'example of {label}') for im in thumbnails]
    remove = ft.Form(ft.Hidden(str(label), name='name'), ft.Button('Remove', cls='quiet'), method='post', action='/remove')
    return ft.Div(ft.Strong(str(label)), *pictures, ft.Small(f'{n} example' + 's' * (n > 1)), remove, cls='row')


def _answer(found: Explanation) -> Any:
    "One query with its label, the probabilities and the heatmap"
    answer = found.prediction
    bars = [ft.Div(ft.Span(str(c)), ft.Progress(value=f'{p:.4f}', max='1'), ft.Small(f'{p:.1%}'), cls='row')
            for c, p in sorted(answer.probabilities.items(), key=lambda o: -o[1])[:10]]
    title = 'none of these classes' if answer.label is None else str(answer.label)
    return ft.Div(ft.Img(src=_data_uri(found.image), cls='big', alt='query'),
                  ft.Img(src=_data_uri(found.heatmap()), cls='big', alt=f'what speaks for {answer.nearest}'),
                  ft.Div(ft.H2(title), *bars, ft.Small(f'red speaks for {answer.nearest}, blue against it')), cls='answer')


class _Page:
    "The classifier that all visitors share, and the page that shows it"
    def __init__(self, classifier: FewShotClassifier, limits: Limits):
        self.classifier, self.limits, self.lock = classifier, limits, Lock()

    def show(self, answers: list[Explanation] | None = None, error: str = '', status: int = 200) -> HTMLResponse:
        files = ft.Input(type='file', name='files', multiple=True, accept='image/*', required=True)
        parts = [
            ft.H1('Few-shot classifier'),
            ft.Section(error, cls='error', role='alert') if error else '',
            ft.Section(ft.H2('Classes'), *self._classes(), ft.Form(
                ft.Div(ft.Input(name='name', placeholder='Name of a class', maxlength='64', required=True), files,
                       ft.Button('Add examples'), cls='row'), method='post', action='/add', enctype='multipart/form-data')),
            ft.Section(ft.H2('Which class is it?'), ft.Form(ft.Div(files, ft.Button('Classify'), cls='row'), method='post',
                       action='/classify', enctype='multipart/form-data'), *map(_answer, answers or [])),
            ft.Small('Drop images onto the dashed fields, or click them to choose.')]
        page = ft.Html(ft.Head(ft.Title('Few-shot classifier'), ft.Meta(charset='utf-8'), ft.Style(STYLE),
                               ft.Meta(name='viewport', content='width=device-width, initial-scale=1')),
                       ft.Body(ft.Main(*parts)), lang='en')
        return HTMLResponse(ft.to_xml(page), status, {'Content-Security-Policy': POLICY})

    def _classes(self) -> list[Any]:
        if not self.classifier.shots_: return [ft.P('None yet: two at least are needed.')]
        return [_class_row(c, self.classifier.thumbnails(c)[:8], n) for c, n in self.classifier.shots_.items()]

    def attempt(self, act: Callable[[], list[Explanation] | None]) -> HTMLResponse:
        "Do something and show the page; what a visitor can mend is told on it"
        with self.lock:
            try: return self.show(act())
            except Refused as e: return self.show(error=str(e), status=e.status)
            except (ValueError, TypeError) as e: return self.show(error=str(e), status=400)

    def add(self, name: str, files: list[UploadFile]) -> None:
        name = name.strip()
        if not 0 < len(name) <= 64 or not name.isprintable(): raise Refused('a class needs a name of 1 to 64 characters')
        images, shots = read_images(files, self.limits), self.classifier.shots_
        label = int(name) if name.isdecimal() and any(isinstance(c, int) for c in shots) else name
        if label not in shots and len(shots) >= self.limits.classes: raise Refused(f'at most {self.limits.classes} classes')
        if shots.get(label, 0) + len(images) > self.limits.examples:
            raise Refused(f'at most {self.limits.examples} examples a class')
        self.classifier.add_class(images, label)

    def remove(self, name: str) -> None:
        label = next((c for c in self.classifier.support.classes if str(c) == name), name)
        self.classifier.remove_class(label)

    def classify(self, files: list[UploadFile]) -> list[Explanation]:
        return [self.classifier.explain(im) for im in read_images(files, self.limits)]  # type: ignore[attr-defined]


def create_app(
    classifier: FewShotClassifier, # With or without examples; all visitors share it
    limits: Limits | None = None, # Of uploads
) -> ft.FastHTML:
    "The web page as an ASGI app. No path or file name from a visitor is ever used, and nothing is written to disk"
    page = _Page(classifier, limits or Limits())
    limit = Middleware(BodyLimit, limit=page.limits.body)
    # nobody is told apart, so nobody gets a session
    app = ft.FastHTML(default_hdrs=False, sess_cls=None, secret_key=secrets.token_hex(), middleware=[limit])

    @app.get('/')
    def home(): return page.attempt(lambda: None)

    @app.post('/add')
    def add(name: str, files: list[UploadFile]): return page.attempt(lambda: page.add(name, files))

    @app.post('/remove')
    def remove(name: str): return page.attempt(lambda: page.remove(name))

    @app.post('/classify')
    def classify(files: list[UploadFile]): return page.attempt(lambda: page.classify(files))

    return app


@call_parse
def fsc_serve(
    model: str, # Folder of a saved classifier (`FewShotClassifier.save`), or `hf://owner/name` of one on the Hugging Face Hub
    support: Path | None = None, # Folder with a folder of images per class; default: the examples saved with the model
    host: str = '127.0.0.1', # Address to listen on; 0.0.0.0 for everyone who can reach this machine
    port: int = 8000, # Port to listen on
) -> None:
    """A web page to classify images by a few examples of each class.

    Drop examples and queries onto it; it shows labels, probabilities and heatmaps. All visitors share the classes.
    """
    app = create_app(plain_errors(lambda: load_classifier(model, support)))
    print(f'http://{host}:{port}')
    uvicorn.run(app, host=host, port=port, log_level='warning')
