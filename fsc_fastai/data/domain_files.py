"Descriptions of data sets, and helpers to find their files"
from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .image_files import IMAGE_SUFFIXES

__all__ = ['ClassFiles', 'Domain']

SPLITS = ('base', 'val', 'novel')


@dataclass(frozen=True)
class ClassFiles:
    "One class of a domain: its name, its image files and the split that it belongs to"
    name: str
    files: list[Path]
    split: str


@dataclass(frozen=True)
class Domain:
    "A data set: how to read it, its expected counts, and where it comes from"
    name: str
    read: Callable[[Path, Domain], list[ClassFiles]] # Classes in the order of their labels, from the folder of the data
    layout: str # The expected files and folders, for the message of an error
    n_classes: tuple[int, int, int] # Base, val and novel
    n_images: int | None = None # Images in all splits, if known
    per_class: int | None = None # Images of every class, if all have the same number
    max_images: int | None = None # Take only so many files of each class, sorted by name
    max_classes: int | None = None # Take only so many classes, those with the most files
    download: Callable[[Path], Path] | None = None # Downloads to the given folder and returns the folder of the data
    folder: str = '' # Name of its folder in fastai's data folder, if it isn't `name`


def split_of(i: int) -> str:
    "Split of the i-th class: every second is base, the others are val and novel in turn (Tseng et al. 2020)"
    return 'base' if i % 2 == 0 else 'val' if i % 4 == 1 else 'novel'


def folder_of(root: Path, domain: Domain, *candidates: str) -> Path:
    "The first of the candidates that exists in `root`"
    found = next((root/c for c in candidates if (root/c).exists()), None)
    if found is None:
        raise FileNotFoundError(f'{domain.name}: {root} has none of {", ".join(candidates)}. {domain.layout}')
    return found


def from_torchvision(name: str, **kwargs: Any) -> Callable[[Path], Path]:
    "The download of a data set by torchvision, which compares its MD5 sum with what it knows"
    def download(root: Path) -> Path:
        from torchvision import datasets
        root.mkdir(parents=True, exist_ok=True)
        getattr(datasets, name)(root, download=True, **kwargs)
        return root
    return download


def images_in(folder: Path) -> list[Path]:
    "Image files that lie directly in a folder, sorted by name"
    with os.scandir(folder) as entries:
        return sorted(Path(e.path) for e in entries
                      if not e.name.startswith('.') and Path(e.name).suffix.lower() in IMAGE_SUFFIXES and e.is_file())


def class_folders(root: Path) -> dict[str, list[Path]]:
    "Images of each folder under `root` that holds any, by its path's parts joined with '-', sorted by that name"
    classes: dict[str, list[Path]] = {}
    for folder in (Path(d) for d, _, _ in os.walk(root) if Path(d) != root):
        name = '-'.join(folder.relative_to(root).parts)
        if not (files := images_in(folder)): continue
        if name in classes: raise ValueError(f'two folders for the class {name!r}: {classes[name][0].parent} and {folder}')
        classes[name] = files
    return dict(sorted(classes.items()))


def indexed(classes: dict[str, list[Path]], domain: Domain) -> list[ClassFiles]:
    "Classes with the split that follows from their position"
    return [ClassFiles(name, files[:domain.max_images], split_of(i)) for i, (name, files) in enumerate(classes.items())]


def existing(files: Iterable[Path], source: Path, domain: Domain) -> list[Path]:
    "The files that a list names; an error names those that are not there"
    files = list(files)
    missing = [f for f in files if not f.is_file()]
    if missing:
        raise FileNotFoundError(f'{domain.name}: {len(missing)} of the {len(files)} images that {source} names are missing, '
                                f'the first is {missing[0]}. {domain.layout}')
    return files
