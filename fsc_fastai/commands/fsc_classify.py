"`fsc_classify`: images in, labels out"
# Annotations are read by `call_parse` at run time, so this module has no `from __future__ import annotations`.
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastcore.script import call_parse

from ..answers import FORMATS, answers_text, printable
from ..data.image_files import image_files
from ..data.images import broken_images
from .common import load_classifier, plain_errors

__all__ = ['fsc_classify']


def _files(images: Iterable[str]) -> list[Path]:
    "The files that are named, and the images in the folders that are named"
    found: list[Path] = []
    for path in map(Path, images): found += image_files(path) if path.is_dir() else [path]
    if missing := [str(f) for f in found if not f.is_file()]: raise FileNotFoundError(f'no such image: {", ".join(missing[:5])}')
    if not found: raise ValueError('no images to classify: name files, or folders of them')
    return found


@call_parse
def fsc_classify(
    *images: str, # Images to classify, or folders of them
    model: str | None = None, # Folder of a saved classifier, or `hf://owner/name` of one on the Hugging Face Hub
    support: Path | None = None, # Folder with a folder of images per class; default: the examples saved with the model
    format: str = 'table', # table, json or csv
    reject: float | None = None, # An image whose largest probability is lower belongs to none of the classes; default: as saved
) -> None:
    """Classify images by a few examples of each class.

    Broken images are named on the error stream and make the exit status 1; the others are classified all the same.
    """
    def answers() -> tuple[list[tuple[Path, Any]], dict[Path, str]]:
        if model is None: raise ValueError('--model is needed: the folder of a saved classifier')
        if format not in FORMATS: raise ValueError(f'--format {format}: one of {", ".join(FORMATS)}')
        files = _files(images)
        classifier = load_classifier(model, support)
        if reject is not None: classifier.reject = reject
        broken = broken_images(files, classifier.preprocess.white)
        good = [f for f in files if f not in broken]
        return list(zip(good, classifier.predict_batch(good), strict=True)), broken
    rows, broken = plain_errors(answers)
    if rows: print(answers_text(rows, format))
    for f, why in broken.items(): print(printable(f'{f}: {why}'), file=sys.stderr)
    if broken: raise SystemExit(1)
