"Imports of optional packages, which extras install"
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['extra']


@contextmanager
def extra(
    name: str, # As in `extras_require` of setup.py
) -> Iterator[None]:
    "Import packages of an extra inside the block. Raises `ImportError` with the command that installs it if one is missing"
    try: yield
    except ModuleNotFoundError as e:
        raise ImportError(f"{e.name} is not installed: pip install 'fsc_fastai[{name}]'", name=e.name) from e
