"Run the notebooks of this folder top to bottom, two at a time: `python -m nbs.run [name …] [--save]`"
from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
COLOUR = re.compile(r'\x1b\[[0-9;]*m')


async def run(path: Path, save: bool, turn: asyncio.Semaphore) -> str | None:
    "Execute one notebook in a kernel of its own; `save` writes its outputs back. What failed and where, or None"
    notebook, reached = nbformat.read(path, as_version=4), 0

    def note(cell_index: int, **_: object) -> None:
        nonlocal reached
        reached = sum(cell.cell_type == 'code' for cell in notebook.cells[:cell_index + 1])

    client = NotebookClient(notebook, timeout=1200, kernel_name='python3', extra_arguments=['--log-level=ERROR'],
                            on_cell_execute=note, resources={'metadata': {'path': str(FOLDER)}})
    async with turn:
        start = time.perf_counter()
        try: await client.async_execute()
        except Exception as e:  # a wrong cell, one that does not end, a kernel that dies
            return f'{path.name} failed in [{reached}]:\n{COLOUR.sub("", str(e)).strip()}'
    print(f'{path.name}: {time.perf_counter() - start:.0f} s', flush=True)
    if save: nbformat.write(notebook, path)
    return None


async def run_all(paths: list[Path], save: bool) -> list[str]:
    "What failed of some notebooks; two run at once, each on one thread"
    os.environ |= dict(OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore:IProgress')  # tqdm's word, where there are no widgets
    turn = asyncio.Semaphore(2)
    return [failed for failed in await asyncio.gather(*(run(path, save, turn) for path in paths)) if failed]


def main() -> None:
    names = [name for name in sys.argv[1:] if name != '--save']
    paths = [path for path in sorted(FOLDER.glob('*.ipynb')) if not names or any(name in path.name for name in names)]
    if not paths: raise SystemExit(f'no notebook of {FOLDER} has {" or ".join(names)} in its name')
    if failed := asyncio.run(run_all(paths, '--save' in sys.argv)): raise SystemExit('\n\n'.join(failed))


if __name__ == '__main__': main()
