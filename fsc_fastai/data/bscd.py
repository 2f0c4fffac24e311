"ChestX, ISIC, EuroSAT and CropDiseases: the targets of BSCD-FSL (Guo et al. 2020), each as a whole"
from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from .domain_files import ClassFiles, Domain, class_folders, existing, folder_of, from_torchvision

__all__ = ['BSCD']

CHESTX = ('Atelectasis', 'Cardiomegaly', 'Effusion', 'Infiltration', 'Mass', 'Nodule', 'Pneumothorax')
ISIC = ('MEL', 'NV', 'BCC', 'AKIEC', 'BKL', 'DF', 'VASC')


def _whole(classes: dict[str, list[Path]]) -> list[ClassFiles]:
    "Classes that are all tested"
    return [ClassFiles(name, files, 'novel') for name, files in classes.items()]


def _rows(table: Path, *columns: str) -> list[dict[str, str]]:
    "Rows of a CSV that has the columns; a `ValueError` names those that it lacks"
    with table.open(newline='', encoding='utf-8-sig') as f:
        rows = csv.DictReader(f)
        if missing := [c for c in columns if c not in (rows.fieldnames or ())]:
            raise ValueError(f'{table} lacks the columns {", ".join(missing)}; it has {", ".join(rows.fieldnames or ())}')
        return list(rows)


def _read_chestx(root: Path, domain: Domain) -> list[ClassFiles]:
    "The X-rays with exactly one finding, and that one of the seven (Pneumonia and Hernia, among others, are not)"
    table = folder_of(root, domain, 'Data_Entry_2017.csv', 'Data_Entry_2017_v2020.csv')
    homes = [folder_of(root, domain, 'images', 'images_001/images'), *sorted(root.glob('images_*/images'))]
    places = {f.name: f for home in reversed(homes) for f in home.iterdir()}
    classes: dict[str, list[Path]] = {name: [] for name in CHESTX}
    for row in _rows(table, 'Image Index', 'Finding Labels'):
        name, finding = row['Image Index'], row['Finding Labels']
        if finding in classes: classes[finding].append(places.get(name, homes[0]/name))
    existing((f for files in classes.values() for f in files), table, domain)
    return _whole(classes)


def _read_isic(root: Path, domain: Domain) -> list[ClassFiles]:
    "Skin lesions of task 3, by the column of the CSV that has the 1"
    images = folder_of(root, domain, 'ISIC2018_Task3_Training_Input')
    stem = 'ISIC2018_Task3_Training_GroundTruth'
    table = folder_of(root, domain, f'{stem}/{stem}.csv', f'{stem}.csv')
    classes: dict[str, list[Path]] = {name: [] for name in ISIC}
    for row in _rows(table, 'image', *ISIC):
        of = [name for name in ISIC if float(row[name] or 0) == 1]
        if len(of) != 1: raise ValueError(f'{table}: {row["image"]} is of {len(of)} classes ({", ".join(of)}), one is wanted')
        classes[of[0]].append(images/f'{row["image"]}.jpg')
    existing((f for files in classes.values() for f in files), table, domain)
    return _whole(classes)


def _folders_in(*candidates: str) -> Callable[[Path, Domain], list[ClassFiles]]:
    "A reader of class folders in the first of these folders that is there"
    return lambda root, domain: _whole(class_folders(folder_of(root, domain, *candidates)))


BSCD = (
    Domain(
        'chestx', _read_chestx, n_classes=(0, 0, 7), n_images=25_848,
        layout="Put Data_Entry_2017.csv of NIH's ChestX-ray14 there, beside images/ with the files of images_001.tar.gz to "
               'images_012.tar.gz, or beside images_001/images/ to images_012/images/'),
    Domain(
        'isic', _read_isic, n_classes=(0, 0, 7), n_images=10_015,
        layout='Unpack ISIC2018_Task3_Training_Input.zip and ISIC2018_Task3_Training_GroundTruth.zip there'),
    Domain(
        'eurosat', _folders_in('2750', 'eurosat/2750', 'EuroSAT_RGB', 'EuroSAT/2750'), n_classes=(0, 0, 10), n_images=27_000,
        download=from_torchvision('EuroSAT'),
        layout='Unpack EuroSAT.zip (the RGB one) there, so that 2750/AnnualCrop/ and nine more exist'),
    Domain(
        'crop_diseases', _folders_in('train', 'dataset/train', 'CropDiseases/dataset/train'), n_classes=(0, 0, 38),
        n_images=43_456,
        layout='Unpack the archive plant-disease of Kaggle there, so that train/Apple___Apple_scab/ and 37 more exist'),
)
