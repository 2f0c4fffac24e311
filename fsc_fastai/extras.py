"What only some need is installed by an extra; whoever lacks it is told which"
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['extra']


@contextmanager
def extra(
    name: str, # As in `extras_require` of setup.py
) -> Iterator[None]:
    "Import what belongs to an extra inside. Raises `ImportError` with the command that installs it where a part is missing"
    try: yield
    except ModuleNotFoundError as e:
        raise ImportError(f"{e.name} is not installed: pip install 'fsc_fastai[{name}]'", name=e.name) from e
