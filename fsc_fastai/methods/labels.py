"Labels of a support set: number of classes, one-hot matrix, class means"
from __future__ import annotations

import torch
from torch import Tensor

from ..tensors import full_precision, plain

__all__ = ['episode_way', 'one_hot', 'class_means']


def episode_way(support_y: Tensor) -> int:
    """The number of classes of an episode, from its support labels.

    Labels of an episodic loader carry their `classes`, and one-hot labels have a column per class, so both answer without
    waiting for the device. Plain integer labels must be 0…n_way−1: `ValueError` if one of them is missing.
    """
    if support_y.ndim == 2: return support_y.shape[1]
    classes = getattr(support_y, 'classes', None)
    if classes: return len(classes)
    found = plain(support_y).unique().tolist()
    if found and found == list(range(len(found))): return len(found)
    raise ValueError(f'labels of a support set are 0…n_way−1, each of them at least once: found {found or "no labels at all"}')


def one_hot(
    support_y: Tensor, # Labels `(n_support,)`, or already one-hot `(…, n_support, n_way)`
    dtype: torch.dtype = torch.float32, # dtype of the result
) -> Tensor:
    "One-hot labels `(…, n_support, n_way)`"
    if support_y.ndim > 1: return plain(support_y).to(dtype)
    return (plain(support_y)[:, None] == torch.arange(episode_way(support_y), device=support_y.device)).to(dtype)


def class_means(
    f_support: Tensor, # Features `(n_support, ...)`
    support_y: Tensor, # Labels `(n_support,)`, or one-hot `(n_support, n_way)`
) -> Tensor:
    """The mean feature of each class `(n_way, ...)`. Classes may have different shots and come in any order.

    >>> class_means(torch.tensor([[1.], [10.], [3.]]), torch.tensor([0, 1, 0]))
    tensor([[ 2.],
            [10.]])
    """
    member = one_hot(support_y, f_support.dtype)
    with full_precision(f_support): total = member.T @ f_support.flatten(1)
    return (total / member.sum(0)[:, None]).unflatten(1, f_support.shape[1:])
