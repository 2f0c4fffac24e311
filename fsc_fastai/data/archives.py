"Safe unpacking of downloaded archives"
from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['filtered_archives']


@contextmanager
def filtered_archives() -> Iterator[None]:
    """Inside the block, unpacking a tar archive that would write outside its folder (`../`, absolute names, links) is an error.

    Python 3.14 does so by default (PEP 706); zip archives cannot write outside. Raises `RuntimeError` for releases of Python
    without such a filter.
    """
    if not hasattr(tarfile, 'data_filter'):
        raise RuntimeError('this Python unpacks archives without looking at their names: update it to 3.10.12, 3.11.4 or later')
    before = tarfile.TarFile.__dict__.get('extraction_filter')
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try: yield
    finally: tarfile.TarFile.extraction_filter = before
