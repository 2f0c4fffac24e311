"`fsc_reproduce`: measures a table of the paper, and puts the paper's numbers beside ours"
# Annotations are read by `call_parse` at run time, so this module has no `from __future__ import annotations`.
from pathlib import Path

from fastcore.script import call_parse

from ..reproduce.cells import METHODS, PRESETS
from ..reproduce.pack import pack_images
from ..reproduce.table import run_table
from ..reproduce.table_data import folder_data
from .common import plain_errors, told

__all__ = ['fsc_reproduce']


@call_parse
def fsc_reproduce(
    table: str, # table2, table3, table4 or figure3 of the paper; controls: the effect of relevance itself; later: later methods
    preset: str = 'small', # small, paper, demo or tiny (a trial); with --data photos, photos_84 (GPU) or photos_short
    domains: str = 'glyphs', # `glyphs`; with --data the folders to test on, separated by commas, or `all`
    data: Path | None = None, # Folder with a folder per domain, as `prepare_domain` writes them; default: the embedded glyphs
    seen: str = 'mini_imagenet', # Folder in --data to train on
    out: Path = Path('results'), # Folder for trained models, results and the report
    seeds: int = 5, # How many models to train of each kind, each with its own seed
    shots: str = '5,1', # Numbers of support images per class, separated by commas
    methods: str = ','.join(METHODS), # Methods to train and test, separated by commas
    finished: bool = False, # Train nothing; only report the models that are finished
    jobs: int = 1, # How many models to train at a time, each in a process of its own; several can share a large GPU
    pack: Path | None = None, # Train nothing; only pack the resized images of the table into this .tgz, for another machine
) -> None:
    """Train and test every model of a table of the paper, and write the report with the paper's numbers beside ours.

    If it is killed, start it again: it goes on where it was, and what is finished is not computed again.
    """
    def reproduce():
        if preset not in PRESETS: raise ValueError(f'preset={preset!r}: one of {", ".join(PRESETS)}')
        if unknown := set(methods.split(',')) - set(METHODS):
            raise ValueError(f'methods={methods!r}: no {", ".join(sorted(unknown))}; choose of {", ".join(METHODS)}')
        known = PRESETS[preset].targets
        if data is None and (known or domains != 'glyphs'):
            raise ValueError(f'preset={preset!r} with domains={domains!r} needs --data, the folder that the domains are in')
        named = [] if domains in ('glyphs', 'all') else domains.split(',')
        command = f'fsc_reproduce {table} --preset {preset} --seeds {seeds} --shots {shots}'
        if data: command += f' --data {data.name} --seen {seen}' + (f' --domains {domains}' if named else '')
        if methods != ','.join(METHODS): command += f' --methods {methods}'
        source = folder_data(data, seen, named or known, PRESETS[preset].left_out) if data else None
        if pack:
            if not source: raise ValueError('--pack needs --data: the embedded glyphs are everywhere')
            archive = pack_images(source, PRESETS[preset], pack, learned_from=table == 'table4')
            print(f'wrote {archive} ({archive.stat().st_size / 2**20:.1f} MiB). Elsewhere: tar xf {archive.name}, then the same '
                  f'command with --data {archive.stem} and without --pack')
            return
        with told():
            report = run_table(table, PRESETS[preset], source, out, seeds, [int(shot) for shot in shots.split(',')], command,
                               methods.split(','), not finished, jobs)
        print(f'wrote {report}')
    plain_errors(reproduce)
