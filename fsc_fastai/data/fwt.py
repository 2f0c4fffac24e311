"miniImageNet, CUB, Cars, Places and Plantae: the domains of Tseng et al. 2020, with their base, val and novel classes"
from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from fastai.data.external import URLs, untar_data

from .domain_files import ClassFiles, Domain, class_folders, existing, folder_of, from_torchvision, images_in, indexed
from .names import distinct

__all__ = ['FWT']


def _read_cub(root: Path, domain: Domain) -> list[ClassFiles]:
    "One folder per class: `001.Black_footed_Albatross`, …"
    folder = folder_of(root, domain, 'images', 'CUB_200_2011/images', 'CUB_200_2011/CUB_200_2011/images')
    return indexed(class_folders(folder), domain)


def _read_places(root: Path, domain: Domain) -> list[ClassFiles]:
    "One folder per class, flat as in the archive for people, or below the class's first letter as torchvision unpacks it"
    folder = folder_of(root, domain, 'data_256_standard', 'data_large_standard', 'places365_standard/train', 'train')
    classes = class_folders(folder)
    if all(name[1:2] == '-' for name in classes): classes = {name[2:]: files for name, files in classes.items()}
    return indexed(dict(sorted(classes.items())), domain)


def _read_plantae(root: Path, domain: Domain) -> list[ClassFiles]:
    "The species with the most images, from few to many; equal ones by name"
    classes = class_folders(folder_of(root, domain, '2018/Plantae', 'train_val2018/Plantae', 'Plantae'))
    by_size = sorted(classes.items(), key=lambda item: (len(item[1]), item[0]))
    return indexed(dict(by_size[-domain.max_classes:] if domain.max_classes else by_size), domain)


def _read_cars(root: Path, domain: Domain) -> list[ClassFiles]:
    "The training images of the devkit, classes by their number in it"
    from scipy.io import loadmat
    homes = ('.', 'stanford-cars', 'stanford_cars', 'cars')
    images = folder_of(root, domain, *(f'{h}/{d}' for d in ('cars_train/cars_train', 'cars_train') for h in homes))
    devkit = folder_of(root, domain, *(f'{h}/{d}' for d in ('devkit', 'car_devkit/devkit') for h in homes))
    source = folder_of(devkit, domain, 'cars_train_annos.mat')
    annotations = loadmat(source, squeeze_me=True)['annotations']
    names = distinct(loadmat(folder_of(devkit, domain, 'cars_meta.mat'), squeeze_me=True)['class_names'])
    classes: dict[str, list[Path]] = {name: [] for name in names}
    files = existing((images/str(o['fname']) for o in annotations), source, domain)
    for o, file in zip(annotations, files, strict=True): classes[names[int(o['class']) - 1]].append(file)
    return indexed({name: sorted(files) for name, files in classes.items()}, domain)


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
    images = sorted(images_in(folder), key=lambda f: int(f.stem.split('_')[-1]))
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
            found = class_folders(folder_of(root, domain, stem, f'mini_imagenet_full_size/{stem}'))
            classes += [ClassFiles(name, files, split) for name, files in found.items()]
            continue
        for label, names in _ravi_rows(table).items():
            if (root/'images').is_dir(): files = existing((root/'images'/n for n in names), table, domain)
            else:
                homes = ('.', 'train', 'ILSVRC/Data/CLS-LOC/train', 'Data/CLS-LOC/train')
                files = _imagenet_files(folder_of(root, domain, *(f'{h}/{label}' for h in homes)), names, table)
            classes.append(ClassFiles(label, files, split))
    return classes


def _from_fastai(url: str) -> Callable[[Path], Path]:
    "The download of an archive by fastai, which compares its size with what it knows"
    # with `data=root`, untar_data would move fastai's data folder for the rest of the process
    return lambda root: untar_data(url)


FWT = (
    Domain(
        'mini_imagenet', _read_mini_imagenet, n_classes=(64, 16, 20), n_images=60_000, per_class=600,
        layout='Put train.csv, val.csv and test.csv of Ravi and Larochelle there, beside a folder images/ with the files '
               "that they name or beside the class folders n01532829/, … of ImageNet's training set; or the folders "
               'train/, val/ and test/ of class folders (mini_imagenet_full_size)'),
    Domain(
        'cub', _read_cub, n_classes=(100, 50, 50), n_images=11_788, download=_from_fastai(URLs.CUB_200_2011),
        folder='CUB_200_2011',
        layout='Unpack CUB_200_2011.tgz there, so that CUB_200_2011/images/001.Black_footed_Albatross/ and 199 more exist'),
    Domain(
        'cars', _read_cars, n_classes=(98, 49, 49), n_images=8_144, download=_from_fastai(URLs.CARS),
        folder='stanford-cars',
        layout='Unpack cars_train.tgz and car_devkit.tgz of Stanford Cars there, so that cars_train/00001.jpg, '
               'devkit/cars_train_annos.mat and devkit/cars_meta.mat exist'),
    Domain(
        'places', _read_places, n_classes=(183, 91, 91), n_images=73_000, per_class=200, max_images=200,
        download=from_torchvision('Places365', split='train-standard', small=True),
        layout='Unpack train_256_places365standard.tar there and call its folder data_256_standard, or unpack '
               'places365standard_easyformat.tar (places365_standard/train/airfield/, …)'),
    Domain(
        'plantae', _read_plantae, n_classes=(100, 50, 50), max_images=600, max_classes=200,
        download=from_torchvision('INaturalist', version='2018'),
        layout='Unpack train_val2018.tar.gz of iNaturalist 2018 there: train_val2018/Plantae/ has one folder per species'),
)
