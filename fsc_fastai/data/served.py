"Data sets by name that torchvision and fastai serve; these libraries download them and know their layouts"
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastai.data.external import URLs, fastai_path, untar_data

from .image_files import image_files
from .readers import ImageList, read_dataset

__all__ = ['TORCHVISION', 'FASTAI', 'served_images']

TRAIN_TEST = (dict(train=True), dict(train=False))
SPLIT = tuple(dict(split=s) for s in ('train', 'test'))
SPLITS3 = tuple(dict(split=s) for s in ('train', 'val', 'test'))
TRAINVAL = tuple(dict(split=s) for s in ('trainval', 'test'))
TORCHVISION: dict[str, Sequence[dict[str, Any]]] = {
    'Caltech101': [{}], 'Caltech256': [{}], 'SUN397': [{}], 'SEMEION': [{}],
    'CIFAR10': TRAIN_TEST, 'CIFAR100': TRAIN_TEST, 'MNIST': TRAIN_TEST, 'FashionMNIST': TRAIN_TEST, 'KMNIST': TRAIN_TEST,
    'USPS': TRAIN_TEST, 'EMNIST': [dict(split='balanced') | o for o in TRAIN_TEST],
    'Omniglot': [dict(background=True), dict(background=False)],
    'Food101': SPLIT, 'GTSRB': SPLIT, 'STL10': SPLIT, 'SVHN': SPLIT, 'DTD': SPLITS3, 'Flowers102': SPLITS3,
    'RenderedSST2': SPLITS3,
    'Country211': [dict(split=s) for s in ('train', 'valid', 'test')], 'FGVCAircraft': TRAINVAL, 'OxfordIIITPet': TRAINVAL,
}
"torchvision's data sets of photographs or drawings with one class each, and the arguments that give their parts"
FASTAI = ('CALTECH_101', 'CIFAR', 'CIFAR_100', 'FOOD', 'IMAGENETTE', 'IMAGENETTE_160', 'IMAGENETTE_320', 'IMAGEWOOF',
          'IMAGEWOOF_160', 'IMAGEWOOF_320', 'MNIST', 'PETS')
"Names in fastai's `URLs` of data sets that have a folder per class, or the class in the name of each file"
CIFAR_FS = {
    'valid': 'beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark television '
             'tractor',
    'test': 'baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table telephone '
            'wardrobe whale woman worm'}
"Classes of CIFAR-100 to validate and to test on (Bertinetto et al. 2019); the other 64 are for training"
ELSEWHERE = {'CIFAR10': 'fastai/cifar', 'CIFAR100': 'fastai/cifar_100', 'Caltech101': 'fastai/caltech_101',
             'Food101': 'fastai/food', 'MNIST': 'fastai/mnist', 'OxfordIIITPet': 'fastai/pets'}
"Data sets of torchvision that fastai serves too, and fastai's names of them"


class _Labelled:
    "A data set of torchvision with its labels as `targets`, whatever it calls them, so that no image is opened for a label"
    def __init__(self, dataset: Any):
        self.dataset = dataset
        def kept(*names: str) -> Any: return next((o for o in (getattr(dataset, n, None) for n in names) if o is not None), None)
        self.targets, self.classes = kept('targets', '_labels', 'labels', 'y'), kept('classes', 'categories', '_characters')
        pairs = kept('_samples', '_flat_character_images')
        if self.targets is None: self.targets = [label for _, label in pairs] if pairs else [o[1] for o in dataset]

    def __len__(self) -> int: return len(self.dataset)
    def __getitem__(self, i: int) -> Any: return self.dataset[i]


def _from_torchvision(name: str, root: Path | None, download: bool) -> ImageList:
    "All parts of a data set as one"
    from torchvision import datasets
    folder = root or fastai_path('data')/'torchvision'
    folder.mkdir(parents=True, exist_ok=True)
    parts = [read_dataset(_Labelled(getattr(datasets, name)(folder, download=download, **part))) for part in TORCHVISION[name]]
    return ImageList([f for part in parts for f in part.files], [label for part in parts for label in part.labels])


def _from_fastai(name: str, root: Path | None, download: bool) -> ImageList:
    "All images of an archive, whatever parts it has, by the folder that they lie in"
    folder = untar_data(getattr(URLs, name)) if root is None else root
    files = image_files(folder)
    if not files: raise FileNotFoundError(f'no images in {folder}')
    return ImageList(files, [f.stem.rpartition('_')[0] if name == 'PETS' else f.parent.name for f in files])


def _cifar_fs(root: Path | None, download: bool) -> ImageList:
    "CIFAR-100 with its classes split as in CIFAR-FS"
    images = _from_torchvision('CIFAR100', root, download)
    of = {c: s for s, classes in CIFAR_FS.items() for c in classes.split()}
    return ImageList(images.files, images.labels, [of.get(label, 'train') for label in images.labels])


def plain(
    name: str, # Name of a data set
) -> str:
    "The name in small letters, without _ and -: so names are compared"
    return name.lower().replace('_', '').replace('-', '')


def _reader(name: str) -> Callable[[Path | None, bool], ImageList] | None:
    "The function that reads this data set. The name may be in any case, with or without _ and -, and begin with its library"
    readers: dict[str, Callable] = {'cifar_fs': _cifar_fs}
    # where both have a name, torchvision's class checks what it downloads
    for library, read, names in (('torchvision', _from_torchvision, TORCHVISION), ('fastai', _from_fastai, FASTAI)):
        for n in names:
            readers[f'{library}/{n.lower()}'] = reader = partial(read, n)
            readers.setdefault(n.lower(), reader)
    return readers.get(name.lower()) or next((read for n, read in readers.items() if plain(n) == plain(name)), None)


def served_images(
    name: str, # Name of torchvision's class or of fastai's URL; `fastai/mnist` or `torchvision/mnist` chooses the library
    root: Path | None = None, # Folder that has the data set, or gets it; None: in fastai's data folder
    download: bool = True, # Download what is missing
) -> ImageList | None:
    "Images of all parts of a data set; None if neither library has this name. Raises `RuntimeError` if it can't be had or read"
    read = _reader(name)
    if read is None: return None
    try: return read(root, download)
    except Exception as e:  # whatever a library raises for a host that is gone, or an archive that is broken
        other = next((f'domain({o!r}) has it from another host, ' for n, o in ELSEWHERE.items() if n.lower() == name.lower()), '')
        raise RuntimeError(f'{name} cannot be had ({type(e).__name__}: {e}). If its host is gone, {other}docs/domains.md says '
                           'who else has it: unpack it where the library looks, and call this with root= that folder and '
                           'download=False. Class folders from anywhere are read by EpisodeDataLoaders.from_folder') from e
