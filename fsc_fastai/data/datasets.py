"The labels of datasets, whatever form they have"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .names import distinct

__all__ = ['dataset_labels']


def dataset_labels(
    dataset: Any, # A dataset of (image, label) pairs or of dictionaries with both
) -> tuple[int | str, list]:
    "The key of the image in an item, and the label of every item. Raises as `read_dataset` does"
    name = type(dataset).__name__
    transform = getattr(dataset, 'transform', None)
    if any(type(o).__name__ == 'Normalize' for o in getattr(transform, 'transforms', [transform])):
        raise ValueError(f'{name} normalises its images, which the loaders do as well: leave Normalize out of its transform')
    targets, names, image_key = getattr(dataset, 'targets', None), getattr(dataset, 'classes', None), 0
    if targets is None and len(dataset):
        image_key, label_key = _keys(dataset[0], name)
        features = getattr(dataset, 'features', {})
        names = names or getattr(features.get(label_key), 'names', None)
        targets = list(dataset[label_key]) if label_key in features else [dataset[i][label_key] for i in range(len(dataset))]
    labels = _class_numbers(targets, name)
    if names is not None and all(isinstance(o, int) and 0 <= o < len(names) for o in labels):
        names = distinct(names)
        labels = [names[o] for o in labels]
    return image_key, labels


def _keys(item: Any, name: str) -> tuple[Any, Any]:
    "Where the image and the label of an item are"
    if not isinstance(item, Mapping): return 0, 1
    found = [next((k for k in keys if k in item), None) for keys in (('image', 'img'), ('label', 'labels', 'target'))]
    if None in found:
        raise ValueError(f'the items of {name} have {", ".join(map(str, item))}: call the image "image" and its class "label"')
    return found[0], found[1]


def _class_numbers(targets: Any, name: str) -> list:
    "Labels as plain values, one-hot ones as the position of their 1"
    labels = np.asarray([] if targets is None else targets)
    if labels.ndim == 2 and labels.shape[1] == 1: labels = labels[:, 0]
    if labels.ndim == 1: return labels.tolist()
    one_hot = ((labels == 1).sum(-1) == 1) & ((labels != 0).sum(-1) == 1)
    for i in np.flatnonzero(~one_hot.reshape(len(labels), -1).all(1))[:1]:
        raise ValueError(f'label {i} of {name} is {labels[i].tolist()}: an image needs one class, as a number or one-hot')
    return labels.argmax(1).tolist()
