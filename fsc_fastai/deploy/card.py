"The model card of a saved classifier: a README.md for people, which no reader of bundles opens"
from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..data.size import size_text
from ..files import atomic_write
from ..methods.registry import list_methods
from .bundle import Bundle

__all__ = ['ModelCard', 'CARD_NAME', 'is_written', 'write_card']

CARD_NAME = 'README.md'
OURS = '<!-- Written by fsc_fastai, which replaces it at the next save: take out this line to keep it as it is. -->'
COLUMNS = ['domain', 'way', 'shot', 'n_episodes', 'accuracy', 'ci95']
MAX_LISTED = 100 # Most classes that are listed
UNSAID = 'Not stated by whoever saved it.'


@dataclass
class ModelCard:
    "Texts for the README.md of a classifier that it does not know itself, for `save` and `push_to_hub`"
    trained_on: str = '' # Domains that the model was trained on, and how, as Markdown
    results: pd.DataFrame | None = None # A table of `learn.evaluate`
    license: str = '' # Licence of the model by its short name, such as `'apache-2.0'`
    data_license: str = '' # Licence of the training images, as Markdown

    def text(self,
        bundle: Bundle, # The saved classifier
    ) -> str:
        "The card as Markdown, with a header for the Hugging Face Hub. Raises `ValueError` for results without the right columns"
        arch = getattr(bundle.model, 'config', {}).get('arch')
        header = dict(library_name='fsc_fastai', pipeline_tag='image-classification', tags=['few-shot-learning'])
        if self.license: header['license'] = self.license
        return '\n'.join([
            '---', *(f'{k}: {json.dumps(v)}' for k, v in header.items()), '---', OURS, '',
            '# A few-shot classifier', '', *_facts(bundle, arch), '',
            '## Load it', '', '```python', *_load(bundle, arch), '```', '',
            'The files are plain data, JSON and safetensors: loading them executes nothing.', '',
            '## Trained on', '', self.trained_on or UNSAID, '', f'Licence of the images: {self.data_license or UNSAID}', '',
            '## Accuracy', '', *_accuracies(self.results), '', '## Classes', '', *_classes(bundle), ''])


def _facts(bundle: Bundle, arch: str | None) -> list[str]:
    n = sum(p.numel() for p in bundle.model.parameters())
    thresholds = [*([] if bundle.reject is None else [f'below a probability of {float(bundle.reject):.3g}']),
                  *([] if bundle.keep is None else [f'stranger than {float(bundle.keep):.2%} of its classes'])]
    rows = [('method', type(bundle.model).__name__), ('backbone', arch or 'a module of its author\'s own'),
            ('parameters', f'{n:,}'), ('images', size_text(bundle.preprocess.size)),
            ('"none of these"', ' or '.join(thresholds) or 'never'),
            ('probabilities', f'calibrated ({bundle.calibrated})' if bundle.calibrated else 'not calibrated')]
    return ['| | |', '|---|---|', *(f'| {k} | {v} |' for k, v in rows)]


def _load(bundle: Bundle, arch: str | None) -> list[str]:
    name = type(bundle.model).__name__
    own = [*([] if arch else ['arch=backbone']), *([] if name.lower() in list_methods() else [f'method={name}'])]
    lines = ['from fsc_fastai.all import FewShotClassifier', '',
             f'classifier = FewShotClassifier.from_pretrained({", ".join(["folder", *own])})  # or hf://owner/name']
    return [*lines, *([] if bundle.support else ["classifier.fit('examples')  # a folder with a folder of images of each class"]),
            "classifier.predict('new.jpg').label"]


def _accuracies(results: pd.DataFrame | None) -> list[str]:
    if results is None: return [UNSAID]
    if missing := [o for o in COLUMNS if o not in results]:
        raise ValueError(f'results have no {", ".join(missing)}: pass the table of learn.evaluate')
    rows = [f'| {o.domain} | {o.way} | {o.shot} | {o.accuracy:.2%} ± {o.ci95:.2%} | {o.n_episodes:,} |'.replace('\n', ' ')
            for o in results.itertuples()]
    return ['| domain | way | shot | accuracy ± 95 % interval | episodes |', '|---|---|---|---|---|', *rows]


def _classes(bundle: Bundle) -> list[str]:
    "In a block of code, each quoted, so that no name is taken for Markdown or HTML"
    if bundle.support is None: return ['None yet: it learns them by examples.']
    names, n = bundle.support.classes, len(bundle.support.labels)
    more = [f'and {len(names) - MAX_LISTED:,} more'] if len(names) > MAX_LISTED else []
    listed = [json.dumps(o, ensure_ascii=False) for o in names[:MAX_LISTED]]
    return [f'{len(names):,}, by {n:,} examples:', '', '```', *listed, *more, '```']


def is_written(
    path: str | os.PathLike, # A README.md
) -> bool:
    "Is it a card that `save` wrote and nobody has taken over?"
    if not Path(path).is_file(): return False
    with Path(path).open('rb') as f: return OURS.encode() in f.read(1 << 12)


def write_card(
    folder: Path, # Folder of a saved classifier
    text: bytes, # Text of its card
) -> None:
    "Write the card. A README.md that `save` did not write stays, with a warning"
    path = folder/CARD_NAME
    if path.exists() and not is_written(path):
        warnings.warn(f'{path} is no card of fsc_fastai: it stays as it is, without the model card', stacklevel=3)
    else:
        with atomic_write(path) as part: part.write_bytes(text)
