"A whole table: its cells one after another, then the report"
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .cells import METHODS, Cell, Preset, guided_best, table_cells
from .curves import training_frame
from .figure import write_figure
from .jobs import run_cells
from .report import write_report
from .run import result_file, results_frame, statistics_frame
from .table_data import Data, glyph_data

__all__ = ['run_table']


def run_table(
    table: str, # table2, table3, table4, figure3, controls or later
    preset: Preset, # Settings of training and tests
    data: Data | None = None, # Domains, see `folder_data`; None: glyphs
    out: Path = Path('results'), # Models, results and the report go to its folder `<data>/<preset>`
    seeds: int = 5, # Number of seeds
    shots: Sequence[int] = (5, 1), # Shots, in the order of training
    command: str = '', # The command line, printed in the report
    methods: Sequence[str] = tuple(METHODS), # Only the cells of these methods
    train: bool = True, # Train missing cells; False: only report finished cells
    jobs: int = 1, # Cells that are trained at a time, each in a process of its own
) -> Path:
    """Train, test and report a table. Returns the Markdown report. Finished cells are read, interrupted ones continue.

    Raises `ValueError` for an unknown table or settings, and `OSError` for files that cannot be written.
    """
    if seeds < 1: raise ValueError(f'seeds={seeds}: at least 1')
    if not shots or min(shots) < 1: raise ValueError(f'shots={list(shots)}: at least one, each at least 1')
    data = data or glyph_data()
    folder = out/data.name/preset.name
    kinds = set(methods) & set(preset.recipes)
    wanted = [c for c in table_cells(table, seeds, data.left_out or list(data.targets), shots) if c.base in kinds]
    def at_hand(cells: Sequence[Cell]) -> list[Cell]: return [c for c in cells if train or result_file(c, folder).exists()]
    cells = at_hand(wanted)
    if not cells: raise ValueError(f'{table} has no {"" if train else "finished "}cells of {", ".join(methods)} in {folder}')
    results = run_cells(cells, preset, data, folder, jobs)
    if table == 'later' and len(cells) == len(wanted):
        guided = guided_best(results)
        wanted, cells = wanted + guided, cells + at_hand(guided)
        results += run_cells(at_hand(guided), preset, data, folder, jobs)
    description = _unfinished(cells, wanted) + _describe(preset, cells[0].base, data)
    if table == 'figure3': return write_figure(statistics_frame(results), folder, command, description)
    frame = results_frame(results)
    if table == 'table4': frame = frame[~frame.transductive].copy()  # as in the paper
    frame.attrs['seen'] = ('novel', 'val')
    return write_report(frame, table, folder, command, description, training_frame(results))


def _unfinished(cells: Sequence[Cell], wanted: Sequence[Cell]) -> str:
    "Which cells of an incomplete table are finished"
    seeds = len({c.seed for c in wanted})
    if len(cells) == len(wanted): return f'{seeds} seed{"s" * (seeds > 1)}. '
    return f'**Not finished: {len(cells)} of {len(wanted)} cells are there: {", ".join(c.key for c in cells)}.** '


def _describe(preset: Preset, base: str, data: Data) -> str:
    "Protocol and preset in a few sentences"
    recipe = preset.recipes[base]
    until = 'until its accuracy on held-out images levelled off, at most ' if recipe.pretrain_patience else 'for '
    return (f'Protocol: {preset.test_episodes} test episodes × {preset.test_query} queries a '
            f'class, 5-way. Training ({base}): {recipe.arch} at {recipe.size} px, {recipe.epochs} epochs of {recipe.n_episodes} '
            f'episodes with {recipe.n_query} queries a class, on an encoder pre-trained {until}{recipe.pretrain_epochs} '
            f'epochs. `novel`: held-out classes of the seen domain ({data.seen}). {preset.note}').strip()
