"Divides a source into sets for training, validation and test, and checks that these fit together"
from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from .episode_loader import EpisodicDL
from .image_files import same_files
from .readers import ImageList
from .sampler import as_range
from .size import size_text
from .splitter import ClassSplitter

__all__ = ['splits_of', 'check_shapes', 'draw_all', 'what_training_takes']


def splits_of(
    images: ImageList, # Images of a source
    splitter: Callable | None, # Such as `ClassSplitter(…)`; None: the list's own sets, or 20 % of the classes for validation
    seed: int, # Seed of the split
) -> list[list[int]]:
    "Positions of the images of each set: training, validation and, if there is one, test"
    if isinstance(splitter, ClassSplitter): return splitter.split_labels(images.labels)
    if splitter is not None: return splitter(images.files)
    if not images.sets: return ClassSplitter(seed=seed).split_labels(images.labels)
    train, valid, *test = images.splits()
    if valid or not train: return [train, valid, *test]
    warnings.warn('there is no validation set beside training and test: 20 % of the training classes are held out for it. '
                  'splitter=ClassSplitter(…) chooses others', stacklevel=4)
    parts = ClassSplitter(seed=seed).split_labels([images.labels[i] for i in train])
    return [*([train[i] for i in part] for part in parts), *test]


def check_shapes(
    train: EpisodicDL, # Loader of training
    valid: EpisodicDL, # Loader of validation
) -> None:
    "Raises `ValueError` if training and validation see images of different size or channels"
    if len(train.dataset) and len(valid.dataset) and train.img_shape != valid.img_shape:
        named = [f'{size_text(dl.img_size)} in {dl.n_chans} channels' for dl in (train, valid)]
        raise ValueError(f'training sees images of {named[0]}, validation of {named[1]}: item_tfms must bring all to one size, '
                         'as Resize(size) does, and batch_tfms both sets to the same, as aug_transforms(size=size) does')


def what_training_takes(
    train: EpisodicDL, # Loader of training
    valid: EpisodicDL, # Loader of validation
) -> str:
    "Text for an error: how many images and classes training takes, and what to do with fewer"
    images = max(as_range('n_shot', dl.n_shot)[1] + as_range('n_query', dl.n_query)[1] for dl in (train, valid))
    ways = [as_range('n_way', dl.n_way)[1] for dl in (train, valid)]
    return (f'Training takes {images} images of each class, of {ways[0]} classes to train on and {ways[1]} others to validate '
            'on. A few images of each class are enough without training: FewShotClassifier.from_backbone(arch).fit(folder), or '
            'fsc_deploy --arch NAME folder')


def draw_all(
    loaders: Sequence[EpisodicDL], # Loaders of training and validation, or one of a test set
) -> None:
    "Make every sampler, so that too few classes or images raise `ValueError` now; warn of classes left out or in two sets"
    if len(loaders) > 1 and not len(loaders[0].dataset): raise ValueError('no images to train on: the training set is empty')
    for dl in loaders:
        if len(dl.dataset) and dl.sampler.dropped: warnings.warn(f'left out {dl.sampler.describe_dropped()}', stacklevel=3)
    if repeated := same_files(f for dl in loaders for f in dl.files):
        warnings.warn(f'{len(repeated)} files are in more than one set: {"; ".join(repeated[:5])}', stacklevel=3)
    if len(loaders) > 1 and (shared := sorted(set(loaders[0].labels) & set(loaders[1].labels))):
        names = ', '.join(str(loaders[0].vocab[c]) for c in shared[:10]) + (' …' if len(shared) > 10 else '')
        warnings.warn(f'training and validation share {len(shared)} classes ({names}): the accuracy will not be that on unseen '
                      'classes. ClassSplitter keeps them apart', stacklevel=3)
