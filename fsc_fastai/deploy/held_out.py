"What the examples alone tell of answers to come: held out in turn, they are queries whose class is known"
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from ..methods.finite import finite_scores
from ..methods.head import Head

__all__ = ['HeldOut', 'folds_of', 'without_folds', 'best_temperature', 'temperature_of']

FOLDS = 10 # At most


def folds_of(
    member: Tensor, # One-hot labels `(n_support, n_way)`
) -> Tensor:
    """The fold of each example `(n_support,)`: one of each class, so that the others are a smaller support of its kind.

    Classes with more examples than there are folds have several in one. The only example of a class is in none: −1.
    """
    position, shots = (member.cumsum(0) * member).sum(1).long() - 1, member.sum(0).long()[member.argmax(1)]
    return (position % shots.clamp(max=FOLDS)).where(shots > 1, -1)


@dataclass(frozen=True)
class HeldOut:
    "A head that has not seen the examples of one fold"
    head: Head # Fitted to all others
    idxs: Tensor # Positions of the examples of the fold


def without_folds(
    head: Head, # Which stays as it is
    features: Tensor, # Of the support, as `head.compact` gives them
    member: Tensor, # One-hot labels `(n_support, n_way)`
) -> Iterator[HeldOut]:
    """A head for each fold, overwritten by the next.

    Raises `ValueError` where no class has two examples, and for a method that needs more of each than are left.
    """
    if member.sum(0).max() < 2: raise ValueError('no class has two, so that one could be held out')
    spare, fold = head.spare(), folds_of(member)
    for k in range(int(fold.max()) + 1):
        out = fold == k
        yield HeldOut(spare.fit(features[~out], member[~out]), out.nonzero()[:, 0])


def best_temperature(
    scores: Tensor, # `(n, n_way)`
    target: Tensor, # The right class of each
    doubt: float, # Share of each label that is spread over all classes: else a perfect separation would ask for temperature 0
) -> float:
    "The temperature of the least cross entropy (Guo et al. 2017, section 4.2)"
    loss = lambda log_t: F.cross_entropy(scores / math.exp(log_t), target, label_smoothing=min(doubt, .5)).item()
    return math.exp(minimize_scalar(loss, bounds=(-9, 12), method='bounded').x)


def temperature_of(
    held_out: Iterable[HeldOut], # Heads that have not seen a fold
    features: Tensor, # Of all examples
    member: Tensor, # Their one-hot labels `(n_support, n_way)`
) -> float:
    """The temperature for examples that are held out. Raises `ValueError` where none can be.

    A quarter of one label is in doubt, of all together: the share that calibrated best on classes of miniImageNet's validation.
    """
    scores, target = zip(*((o.head(features[o.idxs]), member[o.idxs].argmax(1)) for o in held_out))
    known = finite_scores(torch.cat(scores), 'the examples').double().cpu()
    return best_temperature(known, torch.cat(target).cpu(), .25 / len(known))
