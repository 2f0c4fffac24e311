"Train and test the cells of a table, so that a run that was cut off goes on where it was"
from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fastai
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.torch_core import set_seed
from safetensors.torch import load_file, save_file

from .. import __version__
from .. import evaluate as _evaluate  # noqa: F401  adds learn.evaluate
from ..callback.lft import FTCallback, LFTCallback
from ..callback.lrp import LRPGuidedCallback
from ..callback.resume import ResumeFit
from ..data.augment import episode_transforms
from ..data.glyphs import untar_glyph_domains, untar_glyphs
from ..data.loaders import EpisodeDataLoaders
from ..learner import FSCLearner, fsc_learner
from ..models import create_encoder
from ..pretrain import classification_learner
from .cells import Cell, Preset

__all__ = ['Data', 'glyph_data', 'folder_data', 'run_cell', 'results_frame', 'write_atomically']


@dataclass(frozen=True)
class Data:
    "The seen domain with its splits, and the unseen domains to test on"
    name: str
    seen: str                   # what the tables call the seen domain
    source: Path                # folder with base, val and novel
    targets: dict[str, Path]    # folders of the unseen domains
    do_flip: bool = True        # whether a mirrored image is of the same class


def glyph_data() -> Data:
    "Latin glyphs to train on, four other scripts to test on (as many targets as the paper has)"
    return Data('glyphs', 'latin', untar_glyphs(), untar_glyph_domains(['greek', 'cyrillic', 'canadian', 'braille']),
                do_flip=False)


def folder_data(path: Path) -> Data:
    """Domains of your own: `path` has base, val and novel of the seen domain, and a folder of class folders a target.

    `prepare_domain` makes such folders' file lists of the real data sets. Raises `FileNotFoundError` for what is missing.
    """
    missing = [name for name in ('base', 'val', 'novel') if not (path/name).is_dir()]
    if missing: raise FileNotFoundError(f'{path} lacks {", ".join(missing)}: it needs base, val and novel of the seen domain')
    targets = {p.name: p for p in sorted(path.iterdir()) if p.is_dir() and p.name not in ('base', 'val', 'novel')}
    if not targets: raise FileNotFoundError(f'{path} has no unseen domain: put folders of class folders beside base')
    return Data(path.name, path.name, path, targets)


def write_atomically(path: Path, text: str) -> None:
    "Write a text file in one step: a reader, or the next run, finds the old file or the whole new one"
    part = path.with_name(path.name + '.part')
    try:
        part.write_text(text, encoding='utf-8')
        os.replace(part, path)
    finally: part.unlink(missing_ok=True)


def _save_weights(module: torch.nn.Module, path: Path) -> None:
    "The module's state as safetensors, in one step"
    part = path.with_name(path.name + '.part')
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, part)
    os.replace(part, path)


def _loaders(data: Data, preset: Preset, cell: Cell) -> EpisodeDataLoaders:
    "Episodes of the seen domain for training, and its novel classes with the targets for the test"
    dls = EpisodeDataLoaders.from_folder(data.source, n_way=5, n_shot=cell.shot, n_query=preset.n_query,
                                         n_episodes=preset.n_episodes, size=preset.size, seed=cell.seed, verify=False,
                                         batch_tfms=episode_transforms(preset.size, do_flip=data.do_flip)[1])
    return dls.with_domains(data.targets, verify=False)


def _pretrained(dls: EpisodeDataLoaders, arch: str, preset: Preset, seed: int, folder: Path) -> dict[str, torch.Tensor]:
    "Weights of the encoder after its pre-training, which the cells of a seed share"
    weights = folder/'encoders'/f'{arch}_seed{seed}.safetensors'
    if not weights.exists():
        weights.parent.mkdir(parents=True, exist_ok=True)
        set_seed(seed, reproducible=True)
        encoder = create_encoder(arch, img_size=preset.size)
        learn = classification_learner(dls, encoder, cbs=ResumeFit(weights.with_suffix('.pt')))
        _fit(learn, preset.pretrain_epochs, preset, lr=3e-3)
        _save_weights(encoder, weights)
        weights.with_suffix('.pt').unlink(missing_ok=True)
    return load_file(weights)


def _fit(learn: Learner, epochs: int, preset: Preset, lr: float) -> None:
    with learn.no_bar(), learn.no_logging():
        if preset.schedule == 'one_cycle': learn.fit_one_cycle(epochs, lr)
        else: learn.fit(epochs, preset.lr)


def _callbacks(cell: Cell, data: Data, dls: EpisodeDataLoaders) -> list[Callback]:
    "What makes the cell's training: explanations, feature-wise transformation, or both"
    cbs: list[Callback] = [LRPGuidedCallback()] if cell.lrp else []
    if cell.ft == 'ft': cbs.append(FTCallback())
    if cell.ft == 'lft':
        others = [dls.domains[name] for name in data.targets if name != cell.unseen]
        cbs.append(LFTCallback(pseudo_unseen=others))
    return cbs


def _train(cell: Cell, preset: Preset, data: Data, folder: Path) -> FSCLearner:
    "The trained learner of a cell, from its file where it is there already"
    dls = _loaders(data, preset, cell)
    arch, home = preset.arch[cell.base], folder/'cells'/cell.key
    weights = home/'model.safetensors'
    encoder = _pretrained(dls, arch, preset, cell.seed, folder)
    set_seed(cell.seed, reproducible=True)
    learn = fsc_learner(dls, arch, cell.method, pretrained=encoder, cbs=_callbacks(cell, data, dls), metrics=[],
                        method_kwargs=preset.method_kwargs.get(cell.base))
    if weights.exists(): learn.model.load_state_dict(load_file(weights))
    else:
        learn.add_cb(ResumeFit(home/'training.pt'))
        _fit(learn, preset.epochs, preset, preset.lr)
        _save_weights(learn.model, weights)
        (home/'training.pt').unlink(missing_ok=True)
    return learn


def _test(learn: FSCLearner, cell: Cell, preset: Preset) -> list[dict[str, Any]]:
    "Accuracy on every domain, inductive and, where the method allows, transductive; queries right in each episode"
    tested = [cell.unseen] if cell.unseen else list(learn.dls.domains)
    domains = {name: learn.dls.domains[name] for name in tested}
    rows: list[dict[str, Any]] = []
    for transductive in (False, True)[:1 if cell.base == 'GNN' or cell.ft else 2]:
        table = learn.evaluate(domains, n_shot=cell.shot, n_query=preset.test_query, n_episodes=preset.test_episodes,
                               transductive=transductive)
        n = preset.test_query * 5
        rows += [dict(domain=row.domain, transductive=transductive, accuracy=row.accuracy, ci95=row.ci95,
                      n_query=preset.test_query, right=[round(acc*n) for acc in table.attrs['episodes'][row.domain]])
                 for row in table.itertuples()]
    return rows


def run_cell(
    cell: Cell, # What to train
    preset: Preset, # How long and how large
    data: Data, # On which domains
    folder: Path, # Where trained models and results live
) -> dict[str, Any]:
    """The result of a cell: read from its file, or trained, tested and written. Killed at any moment it goes on from there.

    Weights are saved after every epoch and after training, the result in one step; what is there is never computed twice.
    """
    home = folder/'cells'/cell.key
    file = home/'result.json'
    if file.exists(): return json.loads(file.read_text(encoding='utf-8'))
    home.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    learn = _train(cell, preset, data, folder)
    with learn.no_bar(): results = _test(learn, cell, preset)
    result = dict(cell=asdict(cell), model=cell.model, preset=asdict(preset), data=data.name, results=results,
                  versions=dict(fsc_fastai=__version__, torch=torch.__version__, fastai=fastai.__version__))
    write_atomically(file, json.dumps(result))
    print(f'{cell.key}: {_summary(results)} ({time.perf_counter() - start:.0f} s)', flush=True)
    return result


def _summary(results: Iterable[dict[str, Any]]) -> str:
    return ' '.join(f'{r["domain"]} {100*r["accuracy"]:.1f}' for r in results if not r['transductive'])


def results_frame(
    results: Iterable[dict[str, Any]], # From `run_cell`
) -> pd.DataFrame:
    "One row a cell, domain and inference: model, shot, seed, domain, transductive, accuracy, right (queries of each episode)"
    return pd.DataFrame([dict(model=r['model'], shot=r['cell']['shot'], seed=r['cell']['seed'], **row)
                         for r in results for row in r['results']])
