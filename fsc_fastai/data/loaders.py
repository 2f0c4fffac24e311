"`EpisodeDataLoaders`: episodes from folders, file lists, CSVs, frames, datasets and data blocks"
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.core import DataLoaders, Datasets
from fastai.data.transforms import ItemGetter, Normalize
from fastai.vision.augment import Resize
from fastcore.basics import fastuple, listify
from torch import nn

from ..signatures import delegates
from .augment import BytesToFloat, as_grey, episode_transforms, resized
from .block import EpisodeBlock, EpisodeCategorize
from .episode_loader import EpisodicDL
from .image_config import ImageConfig
from .images import OpenImage, opener_of
from .loader import ImageDL
from .names import named_paths
from .readers import ImageList, is_file_lists, read_csvs, read_dataset, read_df, read_folder, read_images
from .sampler import check_whole
from .sets import check_shapes, draw_all, splits_of, what_training_takes
from .size import Size, as_size, sides, size_text

__all__ = ['EpisodeDataLoaders']

_test_dl = DataLoaders.test_dl  # type: ignore[attr-defined]  # patched in by fastai
NOVEL = 'novel'
"Name of the domain with the source's own held-out test classes"


class EpisodeDataLoaders(DataLoaders):
    """Episodes to train on (`train`) and to validate on (`valid`), and `domains` to test on, by name.

    The test set of the training data itself (the folder or file list `novel` or `test`) is the domain `'novel'`; `with_domains`
    adds others.
    """
    def __init__(self,
        *loaders: Any, # Loaders for training, validation and more
        path: str | Path = '.', # Folder where a `Learner` stores files
        device: str | torch.device | None = None, # Device of the batches
        domains: dict[str, EpisodicDL] | None = None, # Loaders of test episodes by name
    ):
        super().__init__(*loaders, path=path, device=device)
        self.domains: dict[str, EpisodicDL] = dict(domains or {})

    @classmethod
    @delegates(EpisodeBlock)
    def from_list(cls,
        images: ImageList, # Images, classes and perhaps sets, from a reader in `fsc_fastai.data.readers`
        path: str | Path = '.', # Folder where a `Learner` stores files
        *,
        splitter: Callable | None = None, # `ClassSplitter(…)`; None: the list's own sets, or 20 % of the classes to validate on
        arch: str | nn.Module | None = None, # Backbone, whose weights set size, crop, interpolation and statistics of the images
        size: Size | None = None, # Side of the images that the model sees, or (height, width); None: as arch, item_tfms, else 84
        orient: bool = True, # Turn images as their EXIF orientation says
        white: float | None = None, # The value of white in samples that are no bytes, such as 4095; None: as their type says
        item_tfms: Any = None, # Instead of the default, see `episode_transforms`
        batch_tfms: Any = None, # Instead of the default
        verify: bool | str = True, # Try all files first; 'skip' leaves broken ones out with a warning; False: no check
        num_workers: int | None = None, # None: 0 with a cache, fastai's default without
        device: str | torch.device | None = None, # None: fastai's default
        seed: int = 0, # Seed of the episodes and of the split
        **kwargs,
    ) -> EpisodeDataLoaders:
        """From a list of images.

        With pretrained weights, give their backbone as `arch`: images are then preprocessed as in its training. Raises errors
        that name them for broken, missing or too few images and for a class in several sets, and `ValueError` for a `size` that
        images do not have after `item_tfms` and `batch_tfms`.
        """
        check_whole('seed', seed)
        like = None if arch is None else ImageConfig.of(arch).at(size)
        item_tfms, batch_tfms = _of_one_size(like.size if like else size, item_tfms, batch_tfms, like)
        images = images.checked(verify, white)
        splits = splits_of(images, splitter, seed)
        images_block = TransformBlock(type_tfms=OpenImage(orient, white), batch_tfms=BytesToFloat)
        block = DataBlock(blocks=(images_block, EpisodeBlock(seed=seed, **kwargs)),
                          getters=[ItemGetter(0), ItemGetter(1)], splitter=lambda items: splits,
                          item_tfms=item_tfms, batch_tfms=batch_tfms)
        items = list(zip(images.files, images.labels, strict=True))
        dls = cls.from_dblock(block, items, path=path, num_workers=num_workers, device=device)
        if size is not None and dls.img_size != as_size('size', size):
            raise ValueError(f'size={size}, but after item_tfms and batch_tfms images have {size_text(dls.img_size)}: leave size '
                             'out, or bring them to it')
        return dls

    @classmethod
    @delegates(from_list)
    def from_folder(cls,
        path: str | Path, # Folder with a folder per class, or with `base/val/novel` (`train/valid/test`) folders of class folders
        **kwargs,
    ) -> EpisodeDataLoaders:
        """From a folder of class folders, or of `base/val/novel` folders of class folders.

        A folder that holds the field's file lists (`base.json`, …) or CSVs (`train.csv`, …) is read by them.
        """
        path = Path(path).expanduser()
        return cls.from_list(read_images(path) if path.is_dir() else read_folder(path), path, **kwargs)

    @classmethod
    @delegates(from_list)
    def from_filelist(cls,
        source: str | Path | dict, # Folder of base.json, val.json, novel.json; one file; or {set: file}; easyfsl's JSON as well
        root: str | Path | None = None, # Folder of relative image names; None: that of the file list
        **kwargs,
    ) -> EpisodeDataLoaders:
        "From the field's JSON file lists, or easyfsl's"
        return cls.from_list(read_images(source, root), **kwargs)

    @classmethod
    @delegates(from_list)
    def from_csv(cls,
        source: str | Path | dict, # Folder of train.csv, val.csv, test.csv; one CSV; or {set: file}
        root: str | Path | None = None, # Folder of relative file names; None: `images` beside the CSV, or its folder
        fn_col: str | None = None, # Column of the file names; None: `filename`, or easyfsl's `image_name`
        label_col: str | None = None, # Column of the classes; None: `label`, or easyfsl's `class_name`
        set_col: str | None = None, # Column of the sets (train, valid, test), if any
        **kwargs,
    ) -> EpisodeDataLoaders:
        "From CSVs, see `read_csvs`"
        return cls.from_list(read_csvs(source, root, fn_col, label_col, set_col), **kwargs)

    @classmethod
    @delegates(from_list)
    def from_df(cls,
        df: pd.DataFrame, # One row per image
        root: str | Path = '.', # Folder of relative file names
        fn_col: str | int = 0, # Column of the file names
        label_col: str | int = 1, # Column of the classes
        set_col: str | int | None = None, # Column of the sets (train, valid, test), if any
        **kwargs,
    ) -> EpisodeDataLoaders:
        "From a pandas frame"
        return cls.from_list(read_df(df, root, fn_col, label_col, set_col), **kwargs)

    @classmethod
    @delegates(from_list)
    def from_dataset(cls,
        dataset: Any, # Dataset of (image, label) pairs, such as torchvision's
        **kwargs,
    ) -> EpisodeDataLoaders:
        "From a torchvision-style dataset with labels"
        return cls.from_list(read_dataset(dataset), **kwargs)

    @classmethod
    def from_dblock(cls,
        dblock: DataBlock, # A `DataBlock` whose last block is an `EpisodeBlock`
        source: Any, # Argument of its `get_items`
        path: str | Path = '.', # Folder where a `Learner` stores files
        device: str | torch.device | None = None, # None: fastai's default
        **kwargs, # For `DataBlock.dataloaders`; those that start with `val_` are for validation and test
    ) -> EpisodeDataLoaders:
        "From a `DataBlock`; a third set of its splitter becomes the domain `'novel'`"
        if not issubclass(dblock.dl_type, EpisodicDL):
            raise TypeError('from_dblock needs a DataBlock whose last block is EpisodeBlock(...), in place of CategoryBlock')
        return cls.from_dls(dblock.dataloaders(source, path=path, device=device, **kwargs))

    @classmethod
    def from_dls(cls,
        dls: DataLoaders, # fastai's loaders of episodes, as `DataBlock.dataloaders` returns them
    ) -> EpisodeDataLoaders:
        "From fastai's `DataLoaders` of episodes; a third loader becomes the domain `'novel'`"
        if isinstance(dls, cls): return dls
        if not all(isinstance(dl, EpisodicDL) for dl in dls):
            raise TypeError(f'loaders of episodes are needed, not {", ".join(type(dl).__name__ for dl in dls)}: use EpisodeBlock')
        try: draw_all(dls.loaders)
        except ValueError as e: raise ValueError(f'{e}. {what_training_takes(*dls.loaders[:2])}') from e
        train, valid, *rest = dls.loaders
        check_shapes(train, valid)
        return cls(train, valid, path=dls.path, device=dls.device, domains={NOVEL: rest[0]} if rest else {})

    def as_domains(self,
        domains: Any, # {name: source}, folders, or a source: folder, file lists, frame, dataset, `ImageList`, loader or loaders
        **kwargs, # Settings that differ from validation: n_way, n_shot, n_query, n_episodes, seed, drop_small, cache; verify
    ) -> dict[str, EpisodicDL]:
        """Loaders of test episodes by name, with validation transforms.

        A source with its own test set (`novel`) stands for this set, any other source for all its classes. `EpisodeDataLoaders`
        stand for their `novel` domain or else their validation classes. Folders are named by the last part of their path, or by
        more parts if several end alike.
        """
        if is_file_lists(domains):
            folders = {Path(o).expanduser().absolute().parent for o in domains.values()}
            domains = {folders.pop().name if len(folders) == 1 else 'test': domains}
        elif isinstance(domains, str | Path): domains = named_paths([domains])
        elif isinstance(domains, list | tuple) and all(isinstance(o, str | Path) for o in domains): domains = named_paths(domains)
        elif not isinstance(domains, dict): domains = {'test': domains}
        return {name: self._as_domain(name, source, **kwargs) for name, source in domains.items()}

    def _as_domain(self, name: str, source: Any, verify: bool | str = True, **kwargs) -> EpisodicDL:
        if isinstance(source, EpisodeDataLoaders) and NOVEL in source.domains: source = source.domains[NOVEL]
        if isinstance(source, DataLoaders): source = source.valid
        if isinstance(source, EpisodicDL): return source.new(**kwargs) if kwargs else source
        images = read_images(source)
        if 'test' in images.sets: images = images.subset(i for i, o in enumerate(images.sets) if o == 'test')
        opener = opener_of(self.valid.dataset) or OpenImage()
        images = images.checked(verify, opener.white)
        items = list(zip(images.files, images.labels, strict=True))
        tfms = [[ItemGetter(0), opener, *self._to_grey()], [ItemGetter(1), EpisodeCategorize]]
        everything = range(len(items))  # as both splits: fastai sets up its transforms on the first, whatever we test on
        dsets = Datasets(items, tfms=tfms, splits=[everything, everything])
        dl = self.valid.new(dsets.subset(1), **kwargs)
        try: draw_all([dl])
        except ValueError as e: raise ValueError(f'domain {name!r}: {e}') from e
        return dl

    def _to_grey(self) -> list[Callable]:
        "What follows `open_image` where the model sees grey images. Raises `ValueError` where it sees neither grey nor colour"
        if self.n_chans not in (1, 3):
            raise ValueError(f'the model sees {self.n_chans} channels, which no image file has: bring test domains as loaders')
        return [as_grey] if self.n_chans == 1 else []

    def with_domains(self,
        domains: Any, # Domains as for `as_domains`
        **kwargs, # Settings as for `as_domains`
    ) -> EpisodeDataLoaders:
        "Add domains to test on. Returns itself. Raises `ValueError` for a name that is taken"
        added = self.as_domains(domains, **kwargs)
        if taken := sorted(added.keys() & self.domains.keys()):
            raise ValueError(f'the domain {" and ".join(taken)} is there already: choose another name, as in '
                             f'dls.with_domains({{name: source}}), or take the old one out by dls.domains.pop({taken[0]!r})')
        self.domains |= added
        return self

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        "Means and standard deviations by which validation normalises the channels; 0 and 1 if it does not"
        found = [t for t in self.valid.after_batch.fs if isinstance(t, Normalize)]
        if not found: return (0.,) * self.n_chans, (1.,) * self.n_chans
        return tuple(found[-1].mean.flatten().tolist()), tuple(found[-1].std.flatten().tolist())

    def build_cache(self,
        progress: bool = True, # Show progress bars
    ) -> EpisodeDataLoaders:
        "Decode all cached images of all loaders and domains now, not when first used. Returns itself"
        for dl in (*self.loaders, *self.domains.values()): dl.build_cache(progress)
        return self

    @property
    def test(self) -> EpisodicDL:
        "Episodes of the source's own held-out classes"
        if NOVEL not in self.domains:
            raise LookupError(f'the source has no test set ({NOVEL}), the domains are {", ".join(self.domains) or "none"}: '
                              'bring classes to test on by dls.with_domains({name: folder})')
        return self.domains[NOVEL]

    def test_dl(self,
        test_items: Any, # Files, PIL images, arrays or tensors; with labels the pairs (image, class) of these loaders' own items
        rm_type_tfms: Any = None, # For fastai's `test_dl`
        with_labels: bool = False, # Load episodes of these items instead of single images
        **kwargs, # For the loader
    ) -> EpisodicDL | ImageDL:
        "A loader of new images, batches `(images,)` with validation transforms, or of episodes of new labelled images"
        try: return _test_dl(self, test_items, rm_type_tfms, with_labels, **kwargs)
        except AssertionError as e:
            raise TypeError(f'no class can be read from {test_items[0]!r}: with_labels=True takes (image, class) pairs. Or test '
                            'on a folder of class folders by learn.evaluate({name: folder})') from e

    def test_images(self,
        items: Any, # Files, PIL images, arrays or tensors; or one of them
        bs: int = 64, # Images per batch
        **kwargs, # For `test_dl`
    ) -> ImageDL:
        "A loader of new images in their order, batches `(images,)` with validation transforms"
        return self.test_dl(listify(items), bs=bs, **kwargs)

    @DataLoaders.device.setter  # type: ignore[attr-defined]
    def device(self, d):
        d = torch.device(d)  # fastai's parts ask for its type
        DataLoaders.device.fset(self, d)
        for dl in getattr(self, 'domains', {}).values(): dl.to(d)


def _of_one_size(size: Size | None, item_tfms: Any, batch_tfms: Any, like: ImageConfig | None) -> tuple[Any, Any]:
    "Transforms with the defaults for those that are None, such that training and validation see images of one size"
    # fastai's own have (width, height)
    made = [tuple(t.size[::-1]) for t in listify(item_tfms) if isinstance(getattr(t, 'size', None), fastuple)]
    if made and size is not None and any(a < b for a, b in zip(made[-1], sides(as_size('size', size)))):
        raise ValueError(f'size={size}, but item_tfms bring images to {size_text(made[-1])}: leave size out, or make them larger')
    wanted = as_size('size', size if size is not None else made[-1] if made else 84)
    item, batch = episode_transforms(wanted, images=like)
    # batch transforms of the user's that cut nothing out leave images as large as they come
    if batch_tfms is not None and not any(getattr(t, 'size', None) for t in listify(batch_tfms)):
        item = resized(like, wanted) if like else Resize(wanted, method='squish')
    return item if item_tfms is None else item_tfms, batch if batch_tfms is None else batch_tfms
