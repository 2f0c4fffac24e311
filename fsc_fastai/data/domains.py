"The domains of the field by name: their files, their counts, and their base, val and novel classes"
from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastai.data.external import fastai_path

from ..files import atomic_write
from ..nearest import unknown
from .bscd import BSCD
from .domain_files import SPLITS, ClassFiles, Domain
from .fwt import FWT

__all__ = ['ClassFiles', 'Domain', 'DOMAINS', 'available_domains', 'prepare_domain', 'domain_items']

DOMAINS = {domain.name: domain for domain in (*FWT, *BSCD)}


def available_domains() -> list[str]:
    "Names of the real domains that `prepare_domain` knows"
    return list(DOMAINS)


def _domain(domain: str | Domain) -> Domain:
    if isinstance(domain, Domain): return domain
    if domain in DOMAINS: return DOMAINS[domain]
    raise unknown('domain', domain, DOMAINS)


def _check_complete(domain: Domain, classes: list[ClassFiles], root: Path) -> None:
    "A ValueError with every count that differs from the complete data"
    problems = []
    for split, wanted in zip(SPLITS, domain.n_classes, strict=True):
        found = sum(c.split == split for c in classes)
        if found != wanted: problems.append(f'{found} {split} classes found, {wanted} wanted')
    n_images = sum(len(c.files) for c in classes)
    if domain.n_images not in (None, n_images): problems.append(f'{n_images} images found, {domain.n_images} wanted')
    odd = [f'{c.name} ({len(c.files)})' for c in classes if domain.per_class not in (None, len(c.files))]
    if odd: problems.append(f'{domain.per_class} images a class wanted, but {", ".join(odd[:5])}' + ' …' * (len(odd) > 5))
    if problems:
        raise ValueError(f'{domain.name} in {root} is not complete: {"; ".join(problems)}. {domain.layout}; '
                         'or use what is there with strict=False')


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


def _download(domain: Domain, root: Path) -> Path:
    "Folder of the downloaded data; a RuntimeError says what to do by hand where that fails"
    if domain.download is None:
        raise RuntimeError(f'{domain.name} has no archive that can be downloaded. In {root}: {domain.layout}')
    try:
        with filtered_archives(): return domain.download(root)
    except Exception as e:
        raise RuntimeError(f'{domain.name}: the download failed ({type(e).__name__}: {e}). In {root}: {domain.layout}') from e


def read_domain(domain: Domain, root: str | Path | None, download: bool, strict: bool) -> tuple[Path, list[ClassFiles]]:
    "The folder of a domain and its classes, downloaded if wanted and needed, and counted"
    root = (fastai_path('data')/(domain.folder or domain.name) if root is None else Path(root).expanduser()).resolve()
    try: classes = domain.read(root, domain)
    except FileNotFoundError as e:
        if not download and domain.download is None: raise
        if not download: raise FileNotFoundError(f'{e}; or let download=True fetch it') from e
        root = _download(domain, root)
        classes = domain.read(root, domain)
    if not any(c.files for c in classes): raise FileNotFoundError(f'{domain.name}: no images in {root}. {domain.layout}')
    if strict: _check_complete(domain, classes, root)
    return root, classes


def domain_items(
    domain: str | Domain, # One of `available_domains()`, or a `Domain` of your own
    root: str | Path | None = None, # Folder of the data; None: within fastai's data folder
    split: str = 'novel', # `base`, `val` or `novel`
    *,
    download: bool = False, # Download missing data (CUB and Cars: into fastai's data folder)
    strict: bool = True, # Check the counts of the complete data
) -> tuple[list[Path], list[str]]:
    """Image files of one split, and the class name of each.

    Raises `FileNotFoundError`, which says what to put where, if data or a listed file is missing, `RuntimeError` if a download
    fails, and `ValueError` for unknown names and for counts that are not those of the complete data.
    """
    if split not in SPLITS: raise ValueError(f'no split {split!r}: choose {", ".join(SPLITS)}')
    domain = _domain(domain)
    classes = [c for c in read_domain(domain, root, download, strict)[1] if c.split == split]
    return [f for c in classes for f in c.files], [c.name for c in classes for _ in c.files]


def prepare_domain(
    domain: str | Domain, # One of `available_domains()`, or a `Domain` of your own
    root: str | Path | None = None, # Folder of the data; None: within fastai's data folder
    out: str | Path | None = None, # Folder for the lists; None: `filelists/<name>` in the folder of the data
    *,
    download: bool = False, # Download missing data (CUB and Cars: into fastai's data folder)
    strict: bool = True, # Check the counts of the complete data
) -> dict[str, Path]:
    """Write `base.json`, `val.json` and `novel.json`, the file lists of the field, and return their paths by split.

    As in the published code, `label_names` has the classes of all splits, and a label is a position in it. The classes are those
    of Ravi and Larochelle (2017) for miniImageNet and of Tseng et al. (2020) for the other domains; where these draw files of a
    class at random, the first files by name are taken. Domains that are only tested, as those of Guo et al. (2020), have only
    `novel.json`. Raises as `domain_items` does.
    """
    domain = _domain(domain)
    root, classes = read_domain(domain, root, download, strict)
    out = root/'filelists'/domain.name if out is None else Path(out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    lists = {split: out/f'{split}.json' for split, n_classes in zip(SPLITS, domain.n_classes, strict=True) if n_classes}
    for split, file in lists.items():
        chosen = [(i, f) for i, c in enumerate(classes) if c.split == split for f in c.files]
        content = dict(label_names=[c.name for c in classes],
                       image_names=[str(f) for _, f in chosen], image_labels=[i for i, _ in chosen])
        with atomic_write(file) as part: part.write_text(json.dumps(content))
    return lists
