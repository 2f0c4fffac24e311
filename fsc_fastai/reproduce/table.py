"A whole table: its cells one after another, then the report"
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .cells import Preset, table_cells
from .report import write_report
from .run import folder_data, glyph_data, results_frame, run_cell

__all__ = ['run_table']


def run_table(
    table: str, # table2, table3 or table4
    preset: Preset, # How long and how large
    data: Path | None, # Folder of the domains, see `folder_data`; None: glyphs
    out: Path, # Its folder `<data>-<preset>` gets models, results and the report
    seeds: int, # Models of each kind
    shots: Sequence[int] = (5, 1), # Shots in the order in which to train
) -> Path:
    "Train, test and report a table; returns the Markdown report. Finished cells are read, a cell that was cut off goes on"
    if seeds < 1: raise ValueError(f'seeds={seeds}: at least 1')
    domains = glyph_data() if data is None else folder_data(data)
    cells = table_cells(table, seeds, list(domains.targets), shots)
    folder = out/f'{domains.name}-{preset.name}'
    folder.mkdir(parents=True, exist_ok=True)
    frame = results_frame(run_cell(cell, preset, domains, folder) for cell in cells)
    frame.attrs['seen'] = 'novel'
    command = f'fsc_reproduce {table} --preset {preset.name} --seeds {seeds} --shots {",".join(map(str, shots))}'
    return write_report(frame, table, folder, command + (f' --data {data.name}' if data else ''),
                        f'{preset.test_episodes} test episodes × {preset.test_query} queries a class, {seeds} seeds, '
                        f'{preset.size} px, {preset.epochs} epochs of {preset.n_episodes} episodes on an encoder pre-trained for '
                        f'{preset.pretrain_epochs} epochs. `novel` is held-out classes of the seen domain ({domains.seen}).')
