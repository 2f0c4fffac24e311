"Cells of a table in parallel processes, for a large GPU or many cores"
from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from .cells import Cell, Preset
from .run import result_file, run_cell
from .table_data import Data
from .training import encoder_file, pretrain_cell

__all__ = ['run_cells']

# a CUDA context does not outlive a fork
PROCESSES: Any = get_context('spawn')


def run_cells(
    cells: Sequence[Cell], # What to train
    preset: Preset, # How long and how large
    data: Data, # The domains to train and test on
    folder: Path, # Where trained models and results live
    jobs: int = 1, # Cells at a time
) -> list[dict[str, Any]]:
    """The results of cells, in their order; each is that of `run_cell`.

    Side by side, they share the cores of the machine, and the encoders that several need are pre-trained first. If a cell fails
    the others are finished before its error is raised. Raises `ValueError` for fewer jobs than one.
    """
    if jobs < 1: raise ValueError(f'jobs={jobs}: at least 1')
    missing = [cell for cell in cells if not result_file(cell, folder).exists()]
    jobs = min(jobs, len(missing))
    if jobs < 2: return [run_cell(cell, preset, data, folder) for cell in cells]
    first: dict[Path, Cell] = {}  # of those that share an encoder
    for cell in missing: first.setdefault(encoder_file(preset.recipes[cell.base], cell.seed, data, folder)[0], cell)
    log = logging.getLogger('fsc_fastai')
    begin = preset, data, folder, max(1, (os.cpu_count() or 1) // jobs), log.getEffectiveLevel()
    with ProcessPoolExecutor(jobs, PROCESSES, _begin, begin) as pool:
        list(pool.map(_pretrain, first.values()))
        return list(pool.map(_run, cells))


_work: tuple[Preset, Data, Path]  # of a process, which keeps the decoded images of one `Data` from cell to cell


def _begin(preset: Preset, data: Data, folder: Path, threads: int, level: int) -> None:
    global _work
    _work = preset, data, folder
    torch.set_num_threads(threads)
    logging.basicConfig(format='%(message)s')
    logging.getLogger('fsc_fastai').setLevel(level)


def _pretrain(cell: Cell) -> None: pretrain_cell(cell, _work[0].recipes[cell.base], *_work[1:])
def _run(cell: Cell) -> dict[str, Any]: return run_cell(cell, *_work)
