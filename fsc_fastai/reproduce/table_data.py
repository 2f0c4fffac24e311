"The domains of a table: one that is seen, and the unseen ones to test on"
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..data.augment import episode_transforms
from ..data.episode_loader import EpisodicDL
from ..data.glyphs import STAMP, untar_glyph_domains, untar_glyphs
from ..data.loaders import EpisodeDataLoaders
from ..data.readers import read_images
from .cells import Cell, Recipe

__all__ = ['Data', 'glyph_data', 'folder_data']

SEEN = 'novel'  # the name of the seen domain's held-out classes among the domains to test on


@dataclass(frozen=True, eq=False)
class Data:
    "The seen domain with its splits, and the unseen domains to test on"
    name: str
    seen: str                   # what the tables call the seen domain
    source: Path                # folder with base, val and novel, as folders or file lists
    targets: dict[str, Path]    # folders of the unseen domains
    do_flip: bool = True        # whether a mirrored image is of the same class
    left_out: tuple[str, ...] = ()  # targets that Table IV leaves out in turn; none: all

    def loaders(self,
        cell: Cell, # The cell, for shot and seed
        recipe: Recipe, # The recipe, for size of the images, queries and episodes
    ) -> EpisodeDataLoaders:
        "Training episodes of the seen domain, with its novel classes and the targets as test domains; cells share the images"
        shared = _decoded(self, recipe.size)
        episodes = dict(n_way=5, n_shot=cell.shot, n_query=recipe.n_query, seed=cell.seed)
        return EpisodeDataLoaders(shared.train.new(n_episodes=recipe.n_episodes, **episodes),
                                  shared.valid.new(n_episodes=recipe.val_episodes or 1, **episodes),
                                  device=shared.device, domains={k: dl.new(**episodes) for k, dl in shared.domains.items()})

    def others(self, cell: Cell) -> list[str]:
        "The targets that a cell may learn from: all that are left out in turn, except the one it is tested on"
        return [name for name in self.left_out or self.targets if name != cell.unseen]

    def pseudo_unseen(self, dls: EpisodeDataLoaders, cell: Cell) -> dict[str, EpisodicDL]:
        "Episodes of the other targets, from their base classes if they have splits (Tseng et al. 2020)"
        others = {name: read_images(self.targets[name]) for name in self.others(cell)}
        base = {name: images.subset(i for i, o in enumerate(images.sets) if o == 'train')
                for name, images in others.items() if images.sets}
        return {name: dls.domains[name] for name in others if name not in base} | dls.as_domains(base, verify=False)

    def made(self,
        targets: Iterable[str], # Targets that count besides the seen domain
    ) -> dict[str, Any]:
        "Plain values that identify the data of a model or result: the domains, and a digest of the files of each"
        return dict(name=self.name, seen=self.seen, do_flip=self.do_flip,
                    files={name: _files_digest(self, path) for name, path in [(self.seen, self.source)] +
                           [(name, self.targets[name]) for name in targets]})


@lru_cache(maxsize=64)
def _files_digest(data: Data, path: Path) -> str:
    "Of a domain's image files in their order: set, class, name, and size; rendered glyphs are known by what was asked for"
    stamp, images = path/STAMP, read_images(path)
    digest = sha256(stamp.read_bytes() if stamp.exists() else b'')
    for i, (file, label) in enumerate(zip(images.files, images.labels)):
        # the size of a PNG of the same pixels depends on the machine's zlib
        size = None if stamp.exists() else file.stat().st_size
        digest.update(repr((images.sets[i:i + 1], str(label), file.name, size)).encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=2)
def _decoded(data: Data, size: int) -> EpisodeDataLoaders:
    "Loaders of all domains at one size, whose decoded images every cell uses"
    dls = EpisodeDataLoaders.from_folder(data.source, size=size, verify=False, n_way=2, n_shot=1, n_query=1,
                                         batch_tfms=episode_transforms(size, do_flip=data.do_flip)[1])
    dls = dls.with_domains(data.targets, verify=False)
    if SEEN not in dls.domains: raise FileNotFoundError(f'{data.source} has no novel classes of the seen domain to test on')
    return dls


def glyph_data() -> Data:
    "Latin glyphs to train on, four other scripts to test on (as many targets as the paper has)"
    return Data('glyphs', 'latin', untar_glyphs(), untar_glyph_domains(['greek', 'cyrillic', 'canadian', 'braille']),
                do_flip=False)


def folder_data(
    path: Path, # Folder with a folder per domain
    seen: str = 'mini_imagenet', # The seen domain
    targets: Sequence[str] = (), # The domains to test on; none: all others
    left_out: Sequence[str] = (), # Which of these Table IV leaves out in turn, to learn from the others; all if none is named
) -> Data:
    """Domains of your own: a folder each, with the images in class folders or with file lists, as `prepare_domain` writes them.

    The seen domain has base, val and novel classes; an unseen one may have them too, and then its novel classes are tested.
    Raises `FileNotFoundError` for what is missing.
    """
    if not path.is_dir(): raise FileNotFoundError(f'no folder {path}. {_LAYOUT}')
    found = {p.name: p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith('.')}
    unseen = list(targets) or [name for name in found if name != seen]
    if missing := [name for name in (seen, *unseen) if name not in found]:
        raise FileNotFoundError(f'{path} has no folder {", ".join(missing)}, but {", ".join(found) or "none at all"}. {_LAYOUT}')
    if not unseen: raise FileNotFoundError(f'{path} has no domain to test on beside {seen}. {_LAYOUT}')
    return Data(path.name, seen, found[seen], {name: found[name] for name in unseen},
                left_out=tuple(name for name in left_out if name in unseen))


_LAYOUT = ('It needs a folder for each domain, with base, val and novel in it: folders of class folders, or base.json, '
           "val.json and novel.json, which `prepare_domain(name, out='PATH/name')` writes for mini_imagenet, cub, cars, places "
           'and plantae. --seen names the domain to train on')
