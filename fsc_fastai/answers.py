"Predictions of a deployed classifier and their text, without torch, for `fsc_fastai.light` too"
from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ['Prediction', 'answered', 'answers_text', 'FORMATS', 'printable', 'printable_lines']

FORMATS = ('table', 'json', 'csv')
STEERING = {'LRE', 'RLE', 'LRO', 'RLO', 'PDF', 'LRI', 'RLI', 'FSI', 'PDI'} # Turn the direction of what follows


@dataclass(frozen=True)
class Prediction:
    "The answer for one image"
    label: str | int | None # None if the image is rejected as none of the classes
    confidence: float # Probability of the likeliest class
    probabilities: dict[Any, float] # Probabilities of all classes
    strangeness: float = field(default=float('nan'), compare=False) # Distance from the nearest class, of features at unit length

    @property
    def nearest(self) -> Any:
        "The likeliest class, rejected or not"
        return max(self.probabilities, key=self.probabilities.__getitem__)


def answered(
    probabilities: dict[Any, float], # Probabilities of all classes
    strangeness: float, # Distance from the nearest class
    reject: float | None, # Least probability of an answer
    limit: float | None, # Largest strangeness of an answer
) -> Prediction:
    "The `Prediction` for an image, rejected if a threshold says so"
    label, confidence = max(probabilities.items(), key=lambda o: o[1])
    rejected = reject is not None and confidence < reject or limit is not None and strangeness > limit
    return Prediction(None if rejected else label, confidence, probabilities, strangeness)


def printable(
    text: Any, # A name from a file or a folder
) -> str:
    "As text without what steers a terminal or breaks a line; such characters as `\\u001b`, which JSON understands too"
    steers = lambda c: unicodedata.category(c) in ('Cc', 'Cs', 'Zl', 'Zp') or unicodedata.bidirectional(c) in STEERING
    return ''.join(f'\\u{ord(c):04x}' if steers(c) else c for c in str(text))


def printable_lines(
    text: Any, # Of several lines
) -> str:
    "`printable`, but for the ends of the lines"
    return '\n'.join(map(printable, str(text).split('\n')))


def answers_text(
    answers: Sequence[tuple[Any, Prediction]], # A file and the answer for it, one at least
    form: str, # One of `FORMATS`
) -> str:
    "The answers, without characters that steer a terminal"
    if form == 'json':
        rows = [dict(file=str(f), label=a.label, confidence=a.confidence, probabilities=a.probabilities) for f, a in answers]
        return printable_lines(json.dumps(rows, indent=1, ensure_ascii=False))
    names = [(printable(f), None if a.label is None else printable(a.label), a) for f, a in answers]
    if form == 'table':
        shown = [(f, label or 'none of these', f'{a.confidence:.4f}') for f, label, a in names]
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        return '\n'.join('  '.join(o.ljust(w) for o, w in zip(row, widths, strict=True)).rstrip() for row in shown)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(['file', 'label', 'confidence', *map(printable, answers[0][1].probabilities)])
    for f, label, a in names: writer.writerow([f, label or '', a.confidence, *a.probabilities.values()])
    return out.getvalue().rstrip()
