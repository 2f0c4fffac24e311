"The real domains of the field - miniImageNet, CUB, Cars, Places, Plantae - and their base, val and novel classes"
from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from fastai.data.external import URLs, fastai_path, untar_data

from ..files import atomic_write
from .image_files import IMAGE_SUFFIXES
from .names import distinct

__all__ = ['ClassFiles', 'Domain', 'DOMAINS', 'available_domains', 'prepare_domain', 'domain_items']

SPLITS = ('base', 'val', 'novel')


@dataclass(frozen=True)
class ClassFiles:
    "One class of a domain: its name, its image files and the split that it belongs to"
    name: str
    files: list[Path]
    split: str


@dataclass(frozen=True)
class Domain:
    "What there is to know about a data set: how to read it, how much there must be, and where it comes from"
    name: str
    read: Callable[[Path, Domain], list[ClassFiles]] # Classes in the order of their labels, from the folder of the data
    layout: str # What to put where, for the message when something is missing
    n_classes: tuple[int, int, int] # Base, val and novel
    n_images: int | None = None # In all splits together, where it is known
    per_class: int | None = None # Exactly so many images a class, where it is so
    max_images: int | None = None # Only the first of a class's sorted files
    max_classes: int | None = None # Only the classes with the most files
    download: Callable[[Path], Path] | None = None # Into the folder given, or the one returned, where that can be automated
    folder: str = '' # Name of its folder in fastai's data folder, if it isn't `name`


def _split_of(i: int) -> str:
    "Split of the i-th class: every second is base, the others are val and novel in turn (Tseng et al. 2020)"
    return 'base' if i % 2 == 0 else 'val' if i % 4 == 1 else 'novel'


def _folder(root: Path, domain: Domain, *candidates: str) -> Path:
    "The first of the candidates that exists in `root`"
    found = next((root/c for c in candidates if (root/c).exists()), None)
    if found is None:
        raise FileNotFoundError(f'{domain.name}: {root} has none of {", ".join(candidates)}. {domain.layout}')
    return found


def _images(folder: Path) -> list[Path]:
    "Image files that lie directly in a folder, sorted by name"
    with os.scandir(folder) as entries:
        return sorted(Path(e.path) for e in entries
                      if not e.name.startswith('.') and Path(e.name).suffix.lower() in IMAGE_SUFFIXES and e.is_file())


def _class_folders(root: Path) -> dict[str, list[Path]]:
    "Images of each folder under `root` that holds any, by its path's parts joined with '-', sorted by that name"
    classes: dict[str, list[Path]] = {}
    for folder in (Path(d) for d, _, _ in os.walk(root) if Path(d) != root):
        name = '-'.join(folder.relative_to(root).parts)
        if not (files := _images(folder)): continue
        if name in classes: raise ValueError(f'two folders for the class {name!r}: {classes[name][0].parent} and {folder}')
        classes[name] = files
    return dict(sorted(classes.items()))


def _indexed(classes: dict[str, list[Path]], domain: Domain) -> list[ClassFiles]:
    "Classes with the split that follows from their position"
    return [ClassFiles(name, files[:domain.max_images], _split_of(i)) for i, (name, files) in enumerate(classes.items())]


def _read_cub(root: Path, domain: Domain) -> list[ClassFiles]:
    "A folder a class: `001.Black_footed_Albatross`, …"
    folder = _folder(root, domain, 'images', 'CUB_200_2011/images', 'CUB_200_2011/CUB_200_2011/images')
    return _indexed(_class_folders(folder), domain)


def _read_places(root: Path, domain: Domain) -> list[ClassFiles]:
    "A folder a class, flat as in the archive for people, or below the class's first letter as torchvision unpacks it"
    folder = _folder(root, domain, 'data_256_standard', 'data_large_standard', 'places365_standard/train', 'train')
    classes = _class_folders(folder)
    if all(name[1:2] == '-' for name in classes): classes = {name[2:]: files for name, files in classes.items()}
    return _indexed(dict(sorted(classes.items())), domain)


def _read_plantae(root: Path, domain: Domain) -> list[ClassFiles]:
    "The species with the most images, from few to many; equal ones by name"
    classes = _class_folders(_folder(root, domain, '2018/Plantae', 'train_val2018/Plantae', 'Plantae'))
    by_size = sorted(classes.items(), key=lambda item: (len(item[1]), item[0]))
    return _indexed(dict(by_size[-domain.max_classes:] if domain.max_classes else by_size), domain)


def _existing(files: Iterable[Path], source: Path, domain: Domain) -> list[Path]:
    "The files that a list names; an error names those that are not there"
    files = list(files)
    missing = [f for f in files if not f.is_file()]
    if missing:
        raise FileNotFoundError(f'{domain.name}: {len(missing)} of the {len(files)} images that {source} names are missing, '
                                f'the first is {missing[0]}. {domain.layout}')
    return files


def _read_cars(root: Path, domain: Domain) -> list[ClassFiles]:
    "The training images of the devkit, classes by their number in it"
    from scipy.io import loadmat
    homes = ('.', 'stanford-cars', 'stanford_cars', 'cars')
    images = _folder(root, domain, *(f'{h}/{d}' for d in ('cars_train/cars_train', 'cars_train') for h in homes))
    devkit = _folder(root, domain, *(f'{h}/{d}' for d in ('devkit', 'car_devkit/devkit') for h in homes))
    source = _folder(devkit, domain, 'cars_train_annos.mat')
    annotations = loadmat(source, squeeze_me=True)['annotations']
    names = distinct(loadmat(_folder(devkit, domain, 'cars_meta.mat'), squeeze_me=True)['class_names'])
    classes: dict[str, list[Path]] = {name: [] for name in names}
    files = _existing((images/str(o['fname']) for o in annotations), source, domain)
    for o, file in zip(annotations, files, strict=True): classes[names[int(o['class']) - 1]].append(file)
    return _indexed({name: sorted(files) for name, files in classes.items()}, domain)


RAVI = {'base': 'train', 'val': 'val', 'novel': 'test'}


def _ravi_rows(table: Path) -> dict[str, list[str]]:
    "File names by class, from a split CSV of Ravi and Larochelle"
    by_class = defaultdict(list)
    with table.open(newline='') as f:
        rows = csv.DictReader(f)
        if not {'filename', 'label'} <= set(rows.fieldnames or ()):
            raise ValueError(f'{table} must have the columns filename,label; it has {",".join(rows.fieldnames or ())}')
        for row in rows: by_class[row['label']].append(row['filename'])
    return by_class


def _imagenet_files(folder: Path, names: list[str], table: Path) -> list[Path]:
    "Ravi's files in ImageNet's own class folder: the last 8 digits of a name count its images by their number, from 1"
    images = sorted(_images(folder), key=lambda f: int(f.stem.split('_')[-1]))
    places = [int(Path(name).stem[-8:]) - 1 for name in names]
    if max(places) >= len(images):
        raise FileNotFoundError(f'{folder} has {len(images)} images, but {table} takes number {max(places) + 1} of them')
    return [images[k] for k in places]


def _read_mini_imagenet(root: Path, domain: Domain) -> list[ClassFiles]:
    "Ravi's CSVs with a folder of images or with ImageNet; or train, val and test folders of class folders"
    classes = []
    for split, stem in RAVI.items():
        table = root/f'{stem}.csv'
        if not table.exists():
            found = _class_folders(_folder(root, domain, stem, f'mini_imagenet_full_size/{stem}'))
            classes += [ClassFiles(name, files, split) for name, files in found.items()]
            continue
        for label, names in _ravi_rows(table).items():
            if (root/'images').is_dir(): files = _existing((root/'images'/n for n in names), table, domain)
            else:
                homes = ('.', 'train', 'ILSVRC/Data/CLS-LOC/train', 'Data/CLS-LOC/train')
                files = _imagenet_files(_folder(root, domain, *(f'{h}/{label}' for h in homes)), names, table)
            classes.append(ClassFiles(label, files, split))
    return classes


# With `data=root`, untar_data would move fastai's data folder for the rest of the process.
def _download_cub(root: Path) -> Path: return untar_data(URLs.CUB_200_2011)


def _download_cars(root: Path) -> Path: return untar_data(URLs.CARS)


def _download_places(root: Path) -> Path:
    from torchvision.datasets import Places365
    root.mkdir(parents=True, exist_ok=True)
    Places365(root, split='train-standard', small=True, download=True)
    return root


def _download_plantae(root: Path) -> Path:
    from torchvision.datasets import INaturalist
    INaturalist(root, version='2018', download=True)
    return root


DOMAINS = {domain.name: domain for domain in (
    Domain(
        'mini_imagenet', _read_mini_imagenet, n_classes=(64, 16, 20), n_images=60_000, per_class=600,
        layout='Put train.csv, val.csv and test.csv of Ravi and Larochelle there, beside a folder images/ with the files '
               "that they name or beside the class folders n01532829/, … of ImageNet's training set; or the folders "
               'train/, val/ and test/ of class folders (mini_imagenet_full_size)'),
    Domain(
        'cub', _read_cub, n_classes=(100, 50, 50), n_images=11_788, download=_download_cub,
        folder='CUB_200_2011',
        layout='Unpack CUB_200_2011.tgz there, so that CUB_200_2011/images/001.Black_footed_Albatross/ and 199 more exist'),
    Domain(
        'cars', _read_cars, n_classes=(98, 49, 49), n_images=8_144, download=_download_cars,
        folder='stanford-cars',
        layout='Unpack cars_train.tgz and car_devkit.tgz of Stanford Cars there, so that cars_train/00001.jpg, '
               'devkit/cars_train_annos.mat and devkit/cars_meta.mat exist'),
    Domain(
        'places', _read_places, n_classes=(183, 91, 91), n_images=73_000, per_class=200, max_images=200,
        download=_download_places,
        layout='Unpack train_256_places365standard.tar there and call its folder data_256_standard, or unpack '
               'places365standard_easyformat.tar (places365_standard/train/airfield/, …)'),
    Domain(
        'plantae', _read_plantae, n_classes=(100, 50, 50), max_images=600, max_classes=200, download=_download_plantae,
        layout='Unpack train_val2018.tar.gz of iNaturalist 2018 there, so that train_val2018/Plantae/ has a folder a species'),
)}


def available_domains() -> list[str]:
    "Names of the real domains that `prepare_domain` knows"
    return list(DOMAINS)


def _domain(domain: str | Domain) -> Domain:
    if isinstance(domain, Domain): return domain
    if domain in DOMAINS: return DOMAINS[domain]
    near = get_close_matches(str(domain).lower(), DOMAINS, n=3, cutoff=.4)
    hint = f'did you mean {" or ".join(near)}? ' if near else ''
    raise ValueError(f'no domain {domain!r}; {hint}There are {", ".join(DOMAINS)}')


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


def _download(domain: Domain, root: Path) -> Path:
    "Folder of the downloaded data; a RuntimeError says what to do by hand where that fails"
    if domain.download is None:
        raise RuntimeError(f'{domain.name} has no archive that can be downloaded. In {root}: {domain.layout}')
    try: return domain.download(root)
    except Exception as e:
        raise RuntimeError(f'{domain.name}: the download failed ({type(e).__name__}: {e}). In {root}: {domain.layout}') from e


def _read(domain: Domain, root: str | Path | None, download: bool, strict: bool) -> tuple[Path, list[ClassFiles]]:
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
    root: str | Path | None = None, # Folder of the data; in fastai's data folder by default
    split: str = 'novel', # `base`, `val` or `novel`
    *,
    download: bool = False, # Download what is not there (CUB and Cars: into fastai's data folder)
    strict: bool = True, # The counts must be those of the complete data
) -> tuple[list[Path], list[str]]:
    """Image files of one split and the class name of each.

    Raises FileNotFoundError when the data or a listed file is missing (saying what to put where), RuntimeError when a
    download fails, ValueError for unknown names and for counts that are not those of the complete data.
    """
    if split not in SPLITS: raise ValueError(f'no split {split!r}: choose {", ".join(SPLITS)}')
    domain = _domain(domain)
    classes = [c for c in _read(domain, root, download, strict)[1] if c.split == split]
    return [f for c in classes for f in c.files], [c.name for c in classes for _ in c.files]


def _write_list(file: Path, classes: list[ClassFiles], split: str) -> None:
    "The field's JSON of one split; the file is replaced in one step"
    chosen = [(i, f) for i, c in enumerate(classes) if c.split == split for f in c.files]
    content = dict(label_names=[c.name for c in classes],
                   image_names=[str(f) for _, f in chosen], image_labels=[i for i, _ in chosen])
    with atomic_write(file) as part: part.write_text(json.dumps(content))


def prepare_domain(
    domain: str | Domain, # One of `available_domains()`, or a `Domain` of your own
    root: str | Path | None = None, # Folder of the data; in fastai's data folder by default
    out: str | Path | None = None, # Folder for the lists; `filelists/<name>` in the folder of the data by default
    *,
    download: bool = False, # Download what is not there (CUB and Cars: into fastai's data folder)
    strict: bool = True, # The counts must be those of the complete data
) -> dict[str, Path]:
    """Write `base.json`, `val.json` and `novel.json`, the file lists of the field, and return their paths by split.

    As in the published code, `label_names` has the classes of all splits, and a label is a position in it. The classes are
    those of Ravi and Larochelle (2017) for miniImageNet and of Tseng et al. (2020) for the others; where they draw files
    of a class at random, these are its first ones by name. Raises what `domain_items` raises.
    """
    domain = _domain(domain)
    root, classes = _read(domain, root, download, strict)
    out = root/'filelists'/domain.name if out is None else Path(out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS: _write_list(out/f'{split}.json', classes, split)
    return {split: out/f'{split}.json' for split in SPLITS}
