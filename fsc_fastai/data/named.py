"`domain('eurosat')`: episodes of data sets by name"
from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ..nearest import unknown
from ..signatures import delegates
from .domains import DOMAINS, read_domain
from .loaders import EpisodeDataLoaders
from .readers import AS_SET, ImageList
from .served import FASTAI, TORCHVISION, plain, served_images

__all__ = ['domain', 'domain_images', 'domain_names']


def domain_names() -> list[str]:
    "The names that `domain` and `domain_images` know"
    return [*DOMAINS, 'cifar_fs', *(n.lower() for n in TORCHVISION), *(f'fastai/{n.lower()}' for n in FASTAI)]


def domain_images(
    name: str, # One of `domain_names()`
    root: str | Path | None = None, # Folder of the data; None: within fastai's data folder
    *,
    download: bool = True, # Download missing data, if it is served
    strict: bool = True, # Check the counts of the complete data, if they are known
) -> ImageList:
    """Images of a data set by its name, with sets where its classes are split; for `with_domains` or `evaluate`.

        learn.evaluate({name: domain_images(name) for name in ('eurosat', 'dtd', 'gtsrb')})

    Names are taken in any case, with or without _ and -. Raises `ValueError` for an unknown one (with near ones) or wrong counts,
    `FileNotFoundError` or `RuntimeError` that says what to do where it cannot be had.
    """
    root = None if root is None else Path(root).expanduser()
    if own := next((d for d in DOMAINS.values() if plain(name) in (plain(d.name), plain(d.folder))), None):
        classes = read_domain(own, root, download and own.download is not None, strict)[1]
        of = [c for c in classes for _ in c.files]
        sets = [AS_SET[c.split] for c in of]
        return ImageList([f for c in classes for f in c.files], [c.name for c in of], [] if set(sets) == {'test'} else sets)
    found = served_images(name, root, download)
    if found is not None: return found
    raise unknown('domain', name, domain_names())


@delegates(EpisodeDataLoaders.from_list)
def domain(
    name: str, # One of `domain_names()`
    root: str | Path | None = None, # Folder of the data; None: within fastai's data folder
    *,
    download: bool = True, # Download missing data, if it is served
    strict: bool = True, # Check the counts of the complete data, if they are known
    splitter: Any = None, # `ClassSplitter(…)`, to train on some of its classes and validate on others
    **kwargs,
) -> EpisodeDataLoaders:
    """Episodes of a data set by its name: `domain('eurosat', n_way=5, n_shot=5)`.

    Where the field splits its classes, they are split; of any other, training and validation have all classes, for it is a domain
    to test on, or a pseudo-unseen one: give a `splitter` to train on it alone. Raises what `domain_images` raises.
    """
    images = domain_images(name, root, download=download, strict=strict)
    if images.sets or splitter is not None: return EpisodeDataLoaders.from_list(images, splitter=splitter, **kwargs)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='training and validation share')
        return EpisodeDataLoaders.from_list(images, splitter=lambda files: (range(len(files)),) * 2, **kwargs)
