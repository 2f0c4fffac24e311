"The page that all visitors share: its classes, its forms, its answers, as HTML"
from __future__ import annotations

import base64
import io
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from threading import Lock
from typing import Any

import fastcore.xml as ft
import numpy as np
import torch
from PIL import Image
from starlette.datastructures import FormData

from ...data.size import sides
from ...deploy import FewShotClassifier
from ...deploy.relevance import Explanation
from .limits import MB, Limits, Refused
from .uploads import files_of, images_of, text_of

__all__ = ['Page']

STYLE = '''
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; color: #1d2530; background: #f4f6f8 }
main { max-width: 60rem; margin: auto; padding: 1rem }
section { background: white; border: 1px solid #d8dee6; border-radius: .6rem; padding: 1rem; margin: 1rem 0 }
h1, h2 { margin: .2rem 0 .6rem } h1 { font-size: 1.5rem } h2 { font-size: 1.1rem }
.row { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; margin: .5rem 0 }
.row > strong { min-width: 7rem; overflow-wrap: anywhere } .bar { display: grid; gap: 0 .6rem; margin: .3rem 0;
grid-template-columns: minmax(5rem, 1fr) minmax(4rem, 12rem) 4rem; align-items: center } .bar > span { overflow-wrap: anywhere }
.answer > div { flex: 1 1 22rem; min-width: 0 }
.answer { display: flex; gap: 1.2rem; flex-wrap: wrap; border-top: 1px solid #d8dee6; padding: .8rem 0 }
img { border-radius: .3rem; image-rendering: auto } .big { height: 14rem; max-width: 100% } .small { width: 48px; height: 48px }
input, button { font: inherit; padding: .35rem .6rem; border: 1px solid #aab4c0; border-radius: .35rem; background: white }
input[type=file] { border-style: dashed; background: #f4f6f8; padding: 1rem; flex: 1 1 14rem; min-width: 0; max-width: 100% }
button { background: #1f6feb; color: white; border: 0; cursor: pointer } button.quiet { background: #e6eaef; color: #1d2530 }
.scale { width: 8rem; height: .6rem; background: linear-gradient(to right, #00004c, blue, white, red, #800000) }
progress { width: 100% } .error { background: #fdecea; border-color: #e0796d } small { color: #5b6673 }
'''


def _data_uri(im: Image.Image) -> str:
    buffer = io.BytesIO()
    im.save(buffer, 'PNG')
    return f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _class_row(label: Any, thumbnails: list[Image.Image], n: int) -> Any:
    pictures = [ft.Img(src=_data_uri(im), cls='small', alt=f'example of {label}') for im in thumbnails]
    remove = _form('/remove', ft.Input(type='hidden', name='name', value=str(label)), ft.Button('Remove', cls='quiet'))
    return ft.Div(ft.Strong(str(label)), *pictures, ft.Small(f'{n} example' + 's' * (n > 1)), remove, cls='row')


def _form(action: str, *parts: Any) -> Any: return ft.Form(*parts, method='post', action=action, enctype='multipart/form-data')


def _answer(found: Explanation, key: str) -> Any:
    "One query with its label, the probabilities, the heatmap, and a form for the right answer"
    answer = found.prediction
    bars = [ft.Div(ft.Span(str(c)), ft.Progress(value=f'{p:.4f}', max='1'), ft.Small(f'{p:.1%}'), cls='bar')
            for c, p in sorted(answer.probabilities.items(), key=lambda o: -o[1])[:10]]
    title = 'none of these classes' if answer.label is None else str(answer.label)
    scale = ft.Div(ft.Small(f'against {answer.nearest}'), ft.Div(cls='scale'), ft.Small('for it'), cls='row')
    name = ft.Input(name='name', list='names', placeholder='Name of its class', maxlength='64', required=True)
    right = _form('/correct', ft.Div(ft.Input(type='hidden', name='image', value=key), name,
                                     ft.Button('This is right', cls='quiet'), cls='row'))
    return ft.Div(ft.Img(src=_data_uri(found.picture), cls='big', alt='query'),
                  ft.Img(src=_data_uri(found.heatmap()), cls='big', alt=f'what speaks for {answer.nearest}'),
                  ft.Div(ft.H2(title), *bars, scale, right), cls='answer')


def _name_in(form: FormData) -> str:
    "The name of a class in a form. Raises `Refused` if it is empty, too long or not printable"
    name = text_of(form, 'name').strip()
    if not 0 < len(name) <= 64 or not name.isprintable(): raise Refused('a class needs a name of 1 to 64 characters')
    return name


class _Asked:
    "Keeps the latest queries as the model saw them, by keys that nobody can guess, so that correcting needs no second upload"
    def __init__(self, most: float):
        self.most, self.pixels = most, OrderedDict[str, np.ndarray]()

    def keep(self, pixels: torch.Tensor) -> str:
        "Keep an image and return its key; the oldest images are dropped if they take too many bytes"
        key = secrets.token_urlsafe(16)
        self.pixels[key] = pixels.numpy().copy()
        while len(self.pixels) > 1 and sum(o.nbytes for o in self.pixels.values()) > self.most: self.pixels.popitem(last=False)
        return key

    def of(self, key: str) -> torch.Tensor:
        "An image by its key. Raises `Refused` if it was dropped"
        if key not in self.pixels: raise Refused('that image is no longer at hand: add it as an example')
        return torch.from_numpy(self.pixels[key])


class Page:
    "A classifier, and the page that shows it. Threads change and ask the classifier, one at a time; the page can always be read"
    def __init__(self,
        classifier: FewShotClassifier, # With or without examples
        limits: Limits, # What is accepted
    ):
        self.classifier, self.limits, self.lock = classifier, limits, Lock()
        self.asked = _Asked(limits.asked_mb * MB)
        self._show_classes()

    def html(self,
        answers: list | None = None, # Result of `classify`
        error: str = '', # What to tell the visitor, if something went wrong
    ) -> str:
        "The whole page as HTML"
        files = ft.Input(type='file', name='files', multiple=True, accept='image/*', required=True)
        parts = [
            ft.H1('Few-shot classifier'),
            ft.Section(error, cls='error', role='alert') if error else '',
            ft.Section(ft.H2('Classes'), self.classes, _form('/add', ft.Div(
                ft.Input(name='name', placeholder='Name of a class', maxlength='64', required=True), files,
                ft.Button('Add examples'), cls='row'))),
            ft.Section(ft.H2('Which class is it?'), _form('/classify', ft.Div(files, ft.Button('Classify'), cls='row')),
                       *(answers or [])),
            ft.Small('Drop images onto the dashed fields, or click them to choose.')]
        return ft.to_xml(ft.Html(ft.Head(ft.Title('Few-shot classifier'), ft.Meta(charset='utf-8'), ft.Style(STYLE),
                                         ft.Meta(name='viewport', content='width=device-width, initial-scale=1')),
                                 ft.Body(ft.Main(*parts)), lang='en'))

    def _show_classes(self) -> None:
        "Draw the examples anew, once for all visitors"
        known = self.classifier
        rows = [_class_row(c, known.thumbnails(c)[:8], n) for c, n in known.shots_.items()]
        names = ft.Datalist(*(ft.Option(value=str(c)) for c in known.shots_), id='names')
        self.classes = ft.Safe(''.join(map(ft.to_xml, [*(rows or [ft.P('None yet: two at least are needed.')]), names])))

    def _images(self, form: FormData) -> Iterator[Image.Image]:
        wanted = self.classifier.preprocess
        return images_of(files_of(form, self.limits), self.limits, max(sides(wanted.resize)), wanted.orient)

    def add(self,
        form: FormData, # Form with the name of a class in `name`, and images in `files`
    ) -> list:
        "Add examples to a class. Raises `Refused` for names and images that are not accepted; nothing is added then"
        name = _name_in(form)
        # only the small squares that the model sees are kept of images while the others are decoded
        pixels = torch.stack([self.classifier.preprocess.pixels(im) for im in self._images(form)])
        with self.lock: self._join(pixels, name)
        return []

    def _join(self, pixels: torch.Tensor, name: str) -> None:
        "Add examples to a class. Raises `Refused` beyond the limits of classes and examples"
        shots = self.classifier.shots_
        label = int(name) if name.isdecimal() and any(isinstance(c, int) for c in shots) else name
        if label not in shots and len(shots) >= self.limits.classes: raise Refused(f'at most {self.limits.classes} classes')
        if shots.get(label, 0) + len(pixels) > self.limits.examples:
            raise Refused(f'at most {self.limits.examples} examples a class')
        self.classifier.add_pixels(pixels, label)
        self._show_classes()

    def correct(self,
        form: FormData, # Form with the key of a classified image in `image`, and its right class in `name`
    ) -> list:
        "Add a classified image to its right class, once. Raises `Refused` if the image was dropped, and for names as `add` does"
        name, key = _name_in(form), text_of(form, 'image')
        with self.lock:
            self._join(self.asked.of(key)[None], name)
            del self.asked.pixels[key]
        return []

    def remove(self,
        form: FormData, # Form with the name of a class in `name`
    ) -> list:
        "Remove a class. Raises `ValueError` if there is none of this name, or if too few classes would be left"
        name = text_of(form, 'name')
        with self.lock:
            if not self.classifier.shots_: raise Refused('there are no classes yet')
            self.classifier.remove_class(next((c for c in self.classifier.support.classes if str(c) == name), name))
            self._show_classes()
        return []

    def classify(self,
        form: FormData, # Form with images in `files`
    ) -> list:
        "Classify images: an answer each. Raises `Refused` for images that are not accepted, `ValueError` for too few classes"
        return [self._answer(im) for im in self._images(form)]

    def _answer(self, im: Image.Image) -> Any:
        with self.lock:
            found = self.classifier.explain(im)  # type: ignore[attr-defined]
            return _answer(found, self.asked.keep(self.classifier.preprocess.pixels(im)))
