"Archives of others, unpacked where they belong and nowhere else"
from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['filtered_archives']


@contextmanager
def filtered_archives() -> Iterator[None]:
    """Within it a tar archive that would write outside its folder (`../`, absolute names, links) is an error, whoever unpacks it.

    As Python does by itself from 3.14 (PEP 706); zip archives have no way out. Raises `RuntimeError` for releases of Python that
    cannot do so.
    """
    if not hasattr(tarfile, 'data_filter'):
        raise RuntimeError('this Python unpacks archives without looking at their names: update it to 3.10.12, 3.11.4 or later')
    before = tarfile.TarFile.__dict__.get('extraction_filter')
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try: yield
    finally: tarfile.TarFile.extraction_filter = before
