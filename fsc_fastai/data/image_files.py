"Image files of a folder, and files that are the same"
from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from pathlib import Path

__all__ = ['IMAGE_SUFFIXES', 'image_files', 'same_files', 'warn_of_equal_files']

IMAGE_SUFFIXES = frozenset(('.avif', '.bmp', '.dib', '.gif', '.j2k', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm',
                            '.png', '.pnm', '.ppm', '.tga', '.tif', '.tiff', '.webp'))
"Endings of image files, on every machine; fastai asks the machine"
MODELS = 'models'  # where fastai's learner puts its weights


def image_files(
    folder: str | Path, # The folder to search, with its subfolders
) -> list[Path]:
    """The image files in a folder and its subfolders, sorted. Hidden files are left out, links are followed.

    Warns once of all other files, by their endings.
    """
    found: list[Path] = []
    others: Counter[str] = Counter()
    for parent, inner, names in os.walk(os.fspath(folder), followlinks=True):
        inner[:] = [o for o in inner if not o.startswith('.') and not _leads_back(parent, o)]
        suffixes = {o: Path(o).suffix.lower() for o in names if not o.startswith('.')}
        images = [Path(parent, o) for o, suffix in suffixes.items() if suffix in IMAGE_SUFFIXES]
        found += images
        is_class = Path(parent) != Path(folder) and Path(parent).name != MODELS
        if images or is_class: others.update(o for o in suffixes.values() if o not in IMAGE_SUFFIXES)
    if others:
        listed = ', '.join(f'{n} {suffix or "without an ending"}' for suffix, n in others.most_common(8))
        warnings.warn(f'left out {others.total()} files in {folder} that are no images by their ending: {listed}', stacklevel=3)
    return sorted(found)


def _leads_back(parent: str, folder: str) -> bool:
    "Whether a folder is a link to one that it lies in"
    path = Path(parent, folder)
    return path.is_symlink() and os.path.realpath(path) in map(os.path.realpath, path.parents)


def _identity(file: str | os.PathLike) -> Hashable:
    "The file that a name stands for, through links of both kinds"
    try: stat = os.stat(file)
    except OSError: return str(file)
    return stat.st_dev, stat.st_ino


def _groups(files: Iterable, key) -> list[list]:
    by_key = defaultdict(list)
    for f in files: by_key[key(f)].append(f)
    return [group for group in by_key.values() if len(group) > 1]


def same_files(
    files: Iterable[str | os.PathLike],
) -> list[str]:
    "Files that occur more than once, under one name or by links, as text for a message"
    return [f'{" = ".join(dict.fromkeys(map(str, group)))} ({len(group)} times)' for group in _groups(files, _identity)]


def warn_of_equal_files(
    files: Iterable[Path],
) -> None:
    "Warn of different files with equal content"
    def digest(file: Path) -> bytes: return hashlib.sha256(file.read_bytes()).digest()
    by_size = _groups({_identity(f): f for f in files}.values(), lambda f: f.stat().st_size)
    equal = [group for of_size in by_size for group in _groups(of_size, digest)]
    if not equal: return
    listed = '; '.join(' = '.join(map(str, group[:3])) for group in equal[:5]) + ('; …' if len(equal) > 5 else '')
    warnings.warn(f'{sum(map(len, equal))} images have the same bytes as another one, so that an episode may have one as '
                  f'support and as query: {listed}', stacklevel=4)
