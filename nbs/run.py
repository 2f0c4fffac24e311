"Run every notebook of this folder top to bottom: `python -m nbs.run [name …] [--save]`; the first failing cell ends the run"
from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def run(path: Path, save: bool) -> None:
    "Execute one notebook in a kernel of its own; `save` writes its outputs back"
    notebook = nbformat.read(path, as_version=4)
    print(f'running {path.name}', flush=True)
    NotebookClient(notebook, timeout=1200, kernel_name='python3', resources={'metadata': {'path': str(FOLDER)}}).execute()
    if save: nbformat.write(notebook, path)


def main() -> None:
    save = '--save' in sys.argv
    names = [name for name in sys.argv[1:] if not name.startswith('--')]
    for path in sorted(FOLDER.glob('*.ipynb')):
        if not names or any(name in path.name for name in names): run(path, save)


if __name__ == '__main__': main()
