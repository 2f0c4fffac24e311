"Packs the images of a table into one small archive, to train and test on another machine"
from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from ..bars import Bar
from ..data.loader import CachedDL
from ..files import atomic_write
from .cells import Cell, Preset
from .table_data import SEEN, Data

__all__ = ['pack_images']


def pack_images(
    data: Data, # The domains to train and test on
    preset: Preset, # Preset with the size that the images are resized to
    archive: Path, # The .tgz file to write; it unpacks to a folder of the same name
    learned_from: bool = False, # Pack the base classes of the targets as well, for Table IV
    quality: int = 85, # Of the JPEG files
) -> Path:
    """Write every image that training and tests use, resized as they do it, class by class; returns `archive`.

    `folder_data` reads the unpacked folder. Its episodes have the same images as those of the originals, but pixels differ by
    what JPEG loses, so results count as results on other data. Raises `ValueError` if `archive` does not end in .tgz, and
    `OSError` if it cannot be written.
    """
    if archive.suffix != '.tgz': raise ValueError(f'{archive} has to end in .tgz')
    folders = dict(_folders(data, preset, learned_from))
    bar = Bar(sum(len(dl.labels) for dl in folders.values()), comment='images')
    with atomic_write(archive) as part, tarfile.open(part, 'w:gz') as tar:
        for folder, dl in folders.items():
            numbers: Counter[int] = Counter()
            for i, label in bar.through(list(enumerate(dl.labels))):
                # numbered in the order of the originals, so that the k-th episode has the same images
                name = f'{archive.stem}/{folder}/{quote(str(dl.vocab[label]), safe=" ")}/{numbers[label]:05d}.jpg'
                numbers[label] += 1
                content = _jpeg(np.asarray(dl.do_item(i)[0]).transpose(1, 2, 0), quality)
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, BytesIO(content))
    return archive


def _folders(data: Data, preset: Preset, learned_from: bool) -> Iterator[tuple[str, CachedDL]]:
    "The folders of the archive, with the images of each"
    recipe = max(preset.recipes.values(), key=lambda recipe: recipe.size)
    cell = Cell('RN', 1, 0)
    dls = data.loaders(cell, recipe)
    yield from {f'{data.seen}/base': dls.train, f'{data.seen}/val': dls.valid, f'{data.seen}/novel': dls.domains[SEEN]}.items()
    base = {name: dl for name, dl in data.pseudo_unseen(dls, cell).items() if dl is not dls.domains[name]} if learned_from else {}
    for name in data.targets:
        if name in base: yield f'{name}/base', base[name]
        yield f'{name}/novel' if name in base else name, dls.domains[name]


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, 'jpeg', quality=quality, optimize=True)
    return file.getvalue()
