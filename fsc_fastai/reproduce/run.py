"Train and test the cells of a table; an interrupted run continues where it stopped"
from __future__ import annotations

import json
import logging
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import fastai
import pandas as pd
import torch

from .. import __version__
from ..data.sampler import EpisodeSampler
from ..files import atomic_write, broken, check_made
from ..learner.channel_statistics import statistics_row
from ..learner.core import FSCLearner
from ..learner.episode_scores import encode_images, episode_scores
from ..methods.finite import finite_scores
from .cells import Cell, Preset, Recipe
from .table_data import Data
from .training import train_cell, training_curves

__all__ = ['result_file', 'run_cell', 'results_frame', 'statistics_frame']

log = logging.getLogger(__name__)


def result_file(
    cell: Cell, # A trained model of a table
    folder: Path, # Folder of trained models and results
) -> Path:
    "The file of a finished cell's result"
    return folder/'cells'/cell.key/'result.json'


def run_cell(
    cell: Cell, # The model to train
    preset: Preset, # Settings of training and tests
    data: Data, # The domains to train and test on
    folder: Path, # Folder of trained models and results
) -> dict[str, Any]:
    """The result of a cell, which is read from its file, or else trained, tested and written.

    Weights are saved after every epoch and after training, so a run that was killed continues. Raises `OSError` for a file that
    cannot be written, and `ValueError` for a file that is broken or belongs to another preset or other data.
    """
    file = result_file(cell, folder)
    recipe, asked = preset.recipes[cell.base], _asked(cell, preset, data)
    if file.exists(): return _read_result(file, asked)
    try: file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e: raise OSError(f'{file.parent} cannot be made ({e}): choose a folder that can be written') from e
    start = time.perf_counter()
    learn = train_cell(cell, recipe, data, folder)
    result = asked | dict(results=_test(learn, cell, preset), training=training_curves(cell, recipe, data, folder),
                          versions=dict(fsc_fastai=__version__, commit=_commit(), torch=torch.__version__,
                                        fastai=fastai.__version__))
    with atomic_write(file) as part: part.write_text(json.dumps(result | dict(sha256=_digest(result))), encoding='utf-8')
    accuracies = ' '.join(f'{r["domain"]} {100*r["accuracy"]:.1f}' for r in result['results'] if not r['transductive'])
    log.info(f'{cell.key}: {accuracies} ({time.perf_counter() - start:.0f} s)')
    return result


def _commit() -> str | None:
    "The state of the code in its version control, `-dirty` where files differ from it; None for an installed package"
    try: return subprocess.run(['git', 'describe', '--always', '--dirty', '--abbrev=12'], cwd=Path(__file__).parent, check=True,
                               capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError): return None


def _asked(cell: Cell, preset: Preset, data: Data) -> dict[str, Any]:
    "What a result belongs to, as JSON gives it back"
    asked = dict(cell=asdict(cell), model=cell.model, recipe=asdict(preset.recipes[cell.base]), data=data.made(data.targets),
                 test=dict(n_episodes=preset.test_episodes, n_query=preset.test_query))
    return json.loads(json.dumps(asked))


def _read_result(file: Path, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text(encoding='utf-8'))
        if result.pop('sha256', None) != _digest(result): raise ValueError('its content is not what was written')
    except (ValueError, AttributeError, TypeError) as e: raise broken(file, e) from e
    # of a version whose cells and recipes had fewer fields
    result |= {k: json.loads(json.dumps(asdict(kind(**result[k])))) for k, kind in (('cell', Cell), ('recipe', Recipe))}
    check_made(file, {k: result[k] for k in asked if k in result}, asked)
    return result


def _digest(result: dict[str, Any]) -> str:
    return sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def _test(learn: FSCLearner, cell: Cell, preset: Preset) -> list[dict[str, Any]]:
    """A row for each domain and inference: queries right in each episode, accuracy, and the channel statistics of Figure 3.

    Inductive and, where the method allows it, transductive; a model of Table IV that learned from the other targets only
    on the one left out. The same test episodes for every model.
    """
    loaders = learn.dls.domains | (dict(val=learn.dls.valid) if preset.test_val else {})
    tested = [cell.unseen] if cell.unseen else list(loaders)
    inferences = (False,) if cell.base == 'GNN' or cell.ft else (False, True)
    rows: list[dict[str, Any]] = []
    learn.model.eval()
    for name in tested:
        dl = loaders[name]
        features = encode_images(learn.model, dl.images(bs=256))
        sampler = EpisodeSampler(dl.labels, 5, cell.shot, preset.test_query, seed=0, vocab=dl.vocab, name=name)
        for transductive in inferences:
            scored = episode_scores(learn.model, features, sampler, preset.test_episodes, transductive)
            right = [int((finite_scores(scores, f'domain {name!r}').argmax(1) == y).sum()) for _, scores, y in scored]
            rows.append(dict(domain=name, transductive=transductive, right=right,
                             accuracy=sum(right) / (len(right) * preset.test_query * 5)))
        rows[-1] |= dict(statistics=statistics_row(features))
    return rows


def results_frame(
    results: Iterable[dict[str, Any]], # From `run_cell`
) -> pd.DataFrame:
    "One row per cell, domain and inference: model, shot, seed, domain, transductive, accuracy, and queries, all and right"
    return pd.DataFrame([dict(model=r['model'], shot=r['cell']['shot'], seed=r['cell']['seed'], queries=5*r['test']['n_query'])
                         | {k: v for k, v in row.items() if k != 'statistics'} for r in results for row in r['results']])


def statistics_frame(
    results: Iterable[dict[str, Any]], # From `run_cell`
) -> pd.DataFrame:
    "One row per cell and domain: model, shot, seed, domain, and the channel statistics of Figure 3"
    return pd.DataFrame([dict(model=r['model'], shot=r['cell']['shot'], seed=r['cell']['seed'], domain=row['domain'])
                         | row['statistics'] for r in results for row in r['results'] if 'statistics' in row])
