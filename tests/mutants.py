"""Put each mistake of `mutations.py` into a copy of the repository and run the tests that must notice.

    python -m tests.mutants [word …]

Words choose the mutations whose description or file holds one of them. Ends with status 1 if a mutant survives.
"""
from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .mutations import MUTATIONS, Mutation

__all__ = ['survives', 'chosen']

ROOT = Path(__file__).parents[1]
COPIED = ('fsc_fastai', 'tests', 'tour', 'pyproject.toml', 'settings.ini', 'README.md', 'docs')


def chosen(words: Sequence[str]) -> list[Mutation]:
    "The mutations that a word of the command line names; all without words"
    return [m for m in MUTATIONS if not words or any(word in m.what or word in m.file for word in words)]


def _run_tests(folder: Path, tests: Sequence[str]) -> int:
    "Status of pytest in `folder`, in a fork that has imported neither the package nor its tests"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.chdir(folder)
            sys.path.insert(0, str(folder))
            for name in [name for name in sys.modules if name.split('.')[0] in ('fsc_fastai', 'tests')]: del sys.modules[name]
            with open(os.devnull, 'w') as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
                import pytest
                status = int(pytest.main(['-x', '-q', '-p', 'no:cacheprovider', *tests]))
                import fsc_fastai
                if Path(fsc_fastai.__file__).parents[1] != folder: status = 98
        finally: os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def survives(mutation: Mutation | None, tests: str) -> bool:
    "Do the tests pass in spite of the mistake? `RuntimeError` where they do not run at all"
    with tempfile.TemporaryDirectory(prefix='mutant_') as parent:
        folder = Path(parent).resolve()
        for name in COPIED:
            if (ROOT/name).is_dir(): shutil.copytree(ROOT/name, folder/name, ignore=shutil.ignore_patterns('__pycache__'))
            else: shutil.copy(ROOT/name, folder/name)
        if mutation is not None:
            text = (folder/mutation.file).read_text(encoding='utf-8')
            found = text.count(mutation.old)
            if found != 1: raise RuntimeError(f'{mutation.file} has {mutation.old!r} {found} times, once is needed')
            (folder/mutation.file).write_text(text.replace(mutation.old, mutation.new), encoding='utf-8')
        status = _run_tests(folder, tests.split())
    if status not in (0, 1): raise RuntimeError(f'{tests}: pytest ended with status {status}')
    return status == 0


def main() -> None:
    import fastai.vision.all  # noqa: F401  the forks find the large libraries imported
    import matplotlib
    import timm  # noqa: F401
    import torch
    matplotlib.use('Agg')
    torch.set_num_threads(1)
    mutations = chosen(sys.argv[1:])
    for tests in dict.fromkeys(m.tests for m in mutations):
        if not survives(None, tests): raise SystemExit(f'{tests} fails without any mistake')
    alive = []
    for m in mutations:
        lives = survives(m, m.tests)
        if lives: alive.append(m)
        print(f'{"SURVIVES" if lives else "noticed"}  {m.what} ({m.file})', flush=True)
    print(f'{len(mutations) - len(alive)} of {len(mutations)} mistakes were noticed')
    if alive: raise SystemExit(1)


if __name__ == '__main__': main()
