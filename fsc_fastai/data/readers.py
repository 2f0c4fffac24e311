"Reads lists of images and their classes from the layouts that the field uses"
from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .datasets import dataset_labels
from .image_files import image_files, warn_of_equal_files
from .images import DatasetImage, checked_images
from .names import composed, distinct
from .splitter import check_disjoint

__all__ = ['ImageList', 'read_folder', 'read_filelists', 'read_csvs', 'read_easyfsl', 'read_df', 'read_dataset', 'read_images']

SETS = {'train': ('base', 'train'), 'valid': ('val', 'valid', 'validation'), 'test': ('novel', 'test')}
"The three sets, and their names in the layouts"

Source = str | Path | Mapping[str, str | Path]

AS_SET = {name: s for s, names in SETS.items() for name in names}


@dataclass
class ImageList:
    "Images, the class of each, and the set of each (`train`, `valid` or `test`) if the layout has sets"
    files: list[Any]
    labels: list[Any]
    sets: list[str] = field(default_factory=list)

    def __post_init__(self):
        if len(self.files) != len(self.labels):
            raise ValueError(f'{len(self.files)} images, but {len(self.labels)} labels: they must match one to one')
        self.files = [Path(f).expanduser() if isinstance(f, str) else f for f in self.files]
        self.labels = [composed(o) for o in self.labels]

    def __len__(self) -> int: return len(self.files)

    def checked(self,
        verify: bool | str = True, # What to do with broken files, see `checked_images`
        white: float | None = None, # The value of white, see `open_image`
    ) -> ImageList:
        """The list, once its files are known to exist and to be images.

        Raises `ValueError` if two sets share a class, `FileNotFoundError` for missing files and, depending on `verify`,
        `OSError` for broken ones.
        """
        classes = {s: {c for c, o in zip(self.labels, self.sets, strict=True) if o == s} for s in dict.fromkeys(self.sets)}
        check_disjoint(classes)
        files = [f for f in self.files if isinstance(f, Path)]
        if missing := [f for f in files if not f.is_file()]:
            raise FileNotFoundError(f'{len(missing)} of {len(files)} images are missing: {", ".join(map(str, missing[:5]))}'
                                    + (' …' if len(missing) > 5 else ''))
        if verify: warn_of_equal_files(files)
        keep = checked_images(files, verify, white) if len(files) == len(self) else []
        return self if all(keep) else self.subset(np.flatnonzero(keep))

    def subset(self, idxs: Iterable[int]) -> ImageList:
        "The images at `idxs`"
        idxs = list(idxs)
        return ImageList([self.files[i] for i in idxs], [self.labels[i] for i in idxs], [self.sets[i] for i in idxs if self.sets])

    def splits(self) -> list[list[int]]:
        "Positions of the training, the validation and (if there are any) the test images"
        splits = [[i for i, o in enumerate(self.sets) if o == s] for s in SETS]
        return splits if splits[2] else splits[:2]


def _join(parts: dict[str, ImageList]) -> ImageList:
    "Several lists as one with sets"
    lists = parts.items()
    return ImageList([f for _, o in lists for f in o.files], [c for _, o in lists for c in o.labels],
                     [s for s, o in lists for _ in o.files])


def _existing(path: Path, suffix: str = '') -> dict[str, Path]:
    "The folder (or file with `suffix`) of each set in `path`; none unless the training set and another one are there"
    found = {s: path/(name + suffix) for s, names in SETS.items() for name in names if (path/(name + suffix)).exists()}
    return found if 'train' in found and len(found) > 1 else {}


def read_folder(
    path: str | Path, # Folder of class folders, or of `base/val/novel` (or `train/valid/test`) folders of class folders
) -> ImageList:
    """Read images whose class is the name of their folder.

    Raises `FileNotFoundError` if there are none, and `ValueError` for images outside class folders or two folders for a class.
    """
    path = Path(path).expanduser()
    if not path.is_dir(): raise FileNotFoundError(f'no such folder: {path}')
    if folders := _existing(path): return _join({s: replace(read_folder(o), sets=[]) for s, o in folders.items()})
    files = image_files(path)
    if not files: raise FileNotFoundError(f'no images in {path}: it needs a folder of images for each class')
    if loose := [f for f in files if f.parent == path]:
        raise ValueError(f'{len(loose)} images lie in {path} itself, such as {loose[0].name}: '
                         'each class needs a folder of its own')
    class_folders: dict[str, Path] = {}
    for f in files:
        first = class_folders.setdefault(composed(f.parent.name), f.parent)
        if first != f.parent: raise ValueError(f'two folders for the class {first.name!r}: {first} and {f.parent}')
    return ImageList(files, [f.parent.name for f in files])


def _read_text(fname: Path) -> str:
    "Read text in UTF-8, or in UTF-16 with a byte order mark. Raises `ValueError` with file and line for anything else"
    raw = fname.read_bytes()
    encoding = 'utf-16' if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else 'utf-8-sig'
    try: text, start = raw.decode(encoding), raw.find(b'\0') if encoding == 'utf-8-sig' else -1
    except UnicodeDecodeError as e: start = e.start
    if start < 0: return text
    line = raw[:start].count(b'\n') + 1
    raise ValueError(f'{fname}, line {line}, is not text in UTF-8: save the file in this encoding')


def _read_json(fname: Path, keys: Sequence[str]) -> dict:
    if not fname.is_file(): raise FileNotFoundError(f'no such file list: {fname}')
    try: content = json.loads(_read_text(fname))
    except json.JSONDecodeError as e: raise ValueError(f'{fname} is not JSON: {e}') from e
    missing = [k for k in keys if not isinstance(content, dict) or not isinstance(content.get(k), list)]
    if missing: raise ValueError(f'{fname} lacks the list {" and ".join(missing)}')
    return content


def _rooted(names: Iterable[str], *roots: Path | None) -> list[Path]:
    "The names as paths below the first of `roots` in which the first name exists; below the last one, if in none"
    names = list(names)
    root = next((r for r in roots if r is not None and names and (r/names[0]).exists()), roots[-1])
    return [Path(root or '.')/n for n in names]


def _read_filelist(fname: Path, root: Path | None) -> ImageList:
    content = _read_json(fname, ('label_names', 'image_names', 'image_labels'))
    names, files, labels = (content[k] for k in ('label_names', 'image_names', 'image_labels'))
    if len(files) != len(labels): raise ValueError(f'{fname} has {len(files)} image_names, but {len(labels)} image_labels')
    for i, (file, label) in enumerate(zip(files, labels, strict=True)):
        if type(label) is not int or not 0 <= label < len(names):
            raise ValueError(f'{fname}: image_labels has {label!r}, which is no position in its {len(names)} label_names, '
                             f'for image {i}')
        if not isinstance(file, str) or not file:
            raise ValueError(f'{fname}: image_names has {file!r} for image {i}, which is no file name')
    names = distinct(names)
    return ImageList(_rooted(files, root, fname.parent), [names[o] for o in labels])


def read_filelists(
    source: Source, # Folder of base.json, val.json, novel.json; one such file; or {set: file}
    root: str | Path | None = None, # What relative image names start from; None: the folder of the file list
) -> ImageList:
    "Read JSON file lists with `label_names`, `image_names` and `image_labels`. Raises `ValueError` if these do not fit together"
    files = _set_files(source, '.json')
    return _join_sets({s: _read_filelist(f, None if root is None else Path(root).expanduser()) for s, f in files.items()})


def _set_files(source: Source, suffix: str) -> dict[str, Path]:
    "The file of each set, from a folder, one file or a mapping"
    if isinstance(source, Mapping):
        if unknown := set(source) - set(AS_SET):
            raise ValueError(f'no set {", ".join(sorted(unknown))}: one of {", ".join(AS_SET)}')
        return {AS_SET[k]: Path(v).expanduser() for k, v in source.items()}
    path = Path(source).expanduser()
    if path.is_dir():
        files = _existing(path, suffix)
        if not files: raise FileNotFoundError(f'{path} has no base{suffix}, val{suffix}, novel{suffix} (or train, valid, test)')
        return files
    if not path.exists(): raise FileNotFoundError(f'no such file or folder: {path}')
    return {'': path}


def _join_sets(parts: dict[str, ImageList]) -> ImageList: return parts[''] if '' in parts else _join(parts)


def read_csvs(
    source: Source, # Folder of train.csv, val.csv, test.csv; one such file; or {set: file}
    root: str | Path | None = None, # What relative file names start from; None: `images` beside the CSV, or its folder
    fn_col: str | None = None, # Column of the file names; None: `filename`, or `image_name` in a folder `class_name`
    label_col: str | None = None, # Column of the classes; None: `label`, or `class_name`
    set_col: str | None = None, # Column of the sets (base/val/novel, train/valid/test), if any
) -> ImageList:
    """Read CSVs, such as Ravi & Larochelle's of miniImageNet (`filename`, `label`) or easyfsl's (`class_name`, `image_name`).

    Every value is read as text, even `NA` and `None`. Raises `ValueError` with file and row for an empty value.
    """
    def read(fname: Path) -> ImageList:
        if not fname.is_file(): raise FileNotFoundError(f'no such CSV: {fname}')
        try: df = pd.read_csv(io.StringIO(_read_text(fname)), dtype=str, keep_default_na=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError) as e: raise ValueError(f'{fname} is no CSV: {e}') from e
        files, classes = fn_col or 'filename', label_col or 'label'
        if fn_col is label_col is None and {'image_name', 'class_name'} <= set(df.columns):
            files, classes = 'image_name', 'class_name'
            df['image_name'] = df.class_name + '/' + df.image_name
        below = fname.parent/'images'
        return read_df(df, root or (below if below.is_dir() else fname.parent), files, classes, set_col, str(fname))
    return _join_sets({s: read(f) for s, f in _set_files(source, '.csv').items()})


def read_easyfsl(
    source: Source, # A specs file; {set: file}; or a folder of train.json, val.json, test.json
    root: str | Path | None = None, # What relative class folders start from; None: the working folder, or the file's
) -> ImageList:
    "Read easyfsl's JSON: `class_names`, and `class_roots` with a folder for each. Raises `FileNotFoundError` if one is missing"
    def read(fname: Path) -> ImageList:
        content = _read_json(fname, ('class_names', 'class_roots'))
        names, roots = content['class_names'], content['class_roots']
        if len(names) != len(roots): raise ValueError(f'{fname} has {len(names)} class_names, but {len(roots)} class_roots')
        folders = _rooted(roots, None if root is None else Path(root).expanduser(), Path(), fname.parent)
        if missing := [f for f in folders if not f.is_dir()]:
            raise FileNotFoundError(f'{fname}: no such class folder: {missing[0]}')
        members = [(f, name) for name, folder in zip(distinct(names), folders, strict=True) for f in image_files(folder)]
        return ImageList([f for f, _ in members], [name for _, name in members])
    return _join_sets({s: read(f) for s, f in _set_files(source, '.json').items()})


def read_df(
    df: pd.DataFrame, # One row per image
    root: str | Path = '.', # What relative file names start from
    fn_col: str | int = 0, # Column of the file names
    label_col: str | int = 1, # Column of the classes
    set_col: str | int | None = None, # Column of the sets (base/val/novel, train/valid/test), if any
    name: str = 'the frame', # What error messages call the frame
) -> ImageList:
    "Read the rows of a pandas frame. Raises `ValueError` for missing columns, empty values and unknown sets"
    columns = [df.columns[c] if isinstance(c, int) and c not in df.columns and c < len(df.columns) else c
               for c in (fn_col, label_col, *([] if set_col is None else [set_col]))]
    if missing := [c for c in columns if c not in df.columns]:
        raise ValueError(f'{name} has no column {", ".join(map(str, missing))}; it has {", ".join(map(str, df.columns))}')
    for c in columns:
        for i in np.flatnonzero((df[c].isna() | df[c].eq('')).to_numpy(bool))[:1]:
            raise ValueError(f'{name}, row {i + 1} (line {i + 2} of a file): nothing in the column {c}')
    files, labels, *sets = (df[c].tolist() for c in columns)
    if sets and (unknown := sorted(set(map(str, sets[0])) - set(AS_SET))):
        raise ValueError(f'{name}: column {columns[2]} has {unknown[0]!r}; known are {", ".join(AS_SET)}')
    return ImageList([Path(root, str(f)).expanduser() for f in files], labels, [AS_SET[str(s)] for s in sets[0]] if sets else [])


def read_dataset(
    dataset: Any, # Dataset of (image, label) pairs, with or without `targets`, such as torchvision's
) -> ImageList:
    """Read the images of a dataset. Labels are numbers, names or one-hot; if the dataset has `classes`, these name the numbers.

    Items may also be dictionaries with an image and a label, as Hugging Face has them. If the dataset has neither `targets` nor
    columns, every item is loaded once for its label. Raises `ValueError` if images are normalised, or have several classes.
    """
    image_key, labels = dataset_labels(dataset)
    return ImageList([DatasetImage(dataset, i, image_key) for i in range(len(labels))], labels)


def read_images(
    source: Any, # Folder, file list, CSV, frame, dataset, or an `ImageList`
    root: str | Path | None = None, # What relative names in a list start from; None: where the list is
) -> ImageList:
    "Read images from any `source`, whose layout is found out from its content. Raises `TypeError` for anything else"
    if isinstance(source, ImageList): return source
    if isinstance(source, pd.DataFrame): return read_df(source, root or '.')
    if is_file_lists(source): return _read_by_suffix(source, Path(next(iter(source.values()))), root)
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.is_dir(): return _read_by_suffix(path, path, root)
        whole = {'test': path/'novel.json'} if (path/'novel.json').is_file() else {}  # of `prepare_domain`, undivided
        if files := _existing(path, '.json') or whole:
            return _read_by_suffix(files, next(iter(files.values())), root)
        if files := _existing(path, '.csv'): return read_csvs(files, root)
        return read_folder(path)
    if hasattr(source, '__getitem__') and hasattr(source, '__len__') and not isinstance(source, Mapping):
        return read_dataset(source)
    raise TypeError(f'no images can be read from a {type(source).__name__}: a folder, file list, CSV, frame or dataset')


def is_file_lists(source: Any) -> bool:
    "Is `source` a mapping {set: file list}, as `prepare_domain` returns it, and not {name: source}?"
    return isinstance(source, Mapping) and len(source) > 0 and set(source) <= set(AS_SET) and all(
        isinstance(o, str | Path) and Path(o).suffix in ('.json', '.csv') for o in source.values())


def _read_by_suffix(source: Source, first: Path, root: str | Path | None) -> ImageList:
    "Read file lists by the reader that fits `first`, which is one of them"
    first = first.expanduser()
    if not first.exists(): raise FileNotFoundError(f'no such file or folder: {first}')
    if first.suffix == '.csv': return read_csvs(source, root)
    if first.suffix != '.json': raise ValueError(f'{first} is neither a folder, nor a .json or .csv file list')
    return read_easyfsl(source, root) if '"class_roots"' in _read_text(first) else read_filelists(source, root)
