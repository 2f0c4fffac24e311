"`fsc_classify`: images in, labels out"
# Annotations are read by `call_parse` at run time, so this module has no `from __future__ import annotations`.
import csv
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastcore.script import call_parse

from ..data.image_files import image_files
from ..data.images import broken_images
from .common import load_classifier, plain_errors, printable, printable_lines

__all__ = ['fsc_classify', 'FORMATS']

FORMATS = ('table', 'json', 'csv')


def _files(images: Iterable[str]) -> list[Path]:
    "Image files, those of folders among them"
    found: list[Path] = []
    for path in map(Path, images): found += image_files(path) if path.is_dir() else [path]
    if missing := [str(f) for f in found if not f.is_file()]: raise FileNotFoundError(f'no such image: {", ".join(missing[:5])}')
    if not found: raise ValueError('no images to classify: name files, or folders of them')
    return found


def _row(file: Path, answer: Any) -> dict[str, Any]:
    return dict(file=str(file), label=answer.label, confidence=answer.confidence, probabilities=answer.probabilities)


def _as_text(rows: list[dict[str, Any]], form: str) -> str:
    "The answers in one of `FORMATS`, without characters that steer a terminal"
    if form == 'json': return printable_lines(json.dumps(rows, indent=1, ensure_ascii=False))
    names = [(printable(r['file']), None if r['label'] is None else printable(r['label'])) for r in rows]
    if form == 'table':
        shown = [(file, label or 'none of these', f'{r["confidence"]:.4f}') for (file, label), r in zip(names, rows, strict=True)]
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        return '\n'.join('  '.join(o.ljust(w) for o, w in zip(row, widths, strict=True)).rstrip() for row in shown)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    classes = map(printable, rows[0]['probabilities'])
    writer.writerow(['file', 'label', 'confidence', *classes])
    for (file, label), r in zip(names, rows, strict=True):
        writer.writerow([file, label or '', r['confidence'], *r['probabilities'].values()])
    return out.getvalue().rstrip()


@call_parse
def fsc_classify(
    *images: str, # Images to classify, or folders of them
    model: str | None = None, # Folder of a saved classifier, or `hf://owner/name` of one on the Hugging Face Hub
    support: Path | None = None, # Folder with a folder of images per class; default: the examples saved with the model
    format: str = 'table', # table, json or csv
    reject: float | None = None, # Below this probability an image is none of the classes; default: as saved
) -> None:
    """Classify images by a few examples of each class.

    Broken images are named on the error stream, the others are answered; the exit status is then 1.
    """
    def answers() -> tuple[list[dict[str, Any]], dict[Path, str]]:
        if model is None: raise ValueError('--model is needed: the folder of a saved classifier')
        if format not in FORMATS: raise ValueError(f'--format {format}: one of {", ".join(FORMATS)}')
        files = _files(images)
        classifier = load_classifier(model, support)
        if reject is not None: classifier.reject = reject
        broken = broken_images(files, classifier.preprocess.white)
        good = [f for f in files if f not in broken]
        return [_row(f, a) for f, a in zip(good, classifier.predict_batch(good), strict=True)], broken
    rows, broken = plain_errors(answers)
    if rows: print(_as_text(rows, format))
    for f, why in broken.items(): print(printable(f'{f}: {why}'), file=sys.stderr)
    if broken: raise SystemExit(1)
