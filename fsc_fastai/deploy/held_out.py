"Examples held out in turn: queries of known class, which calibrate a classifier without other images"
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

FOLDS = 10 # Most folds


def folds_of(
    member: Tensor, # One-hot labels `(n_support, n_way)`
) -> Tensor:
    """The fold of each example `(n_support,)`; a fold has one example of each class, so the others remain a balanced support.

    Classes with more examples than folds have several in each. The only example of a class is in no fold: −1.
    """
    position, shots = (member.cumsum(0) * member).sum(1).long() - 1, member.sum(0).long()[member.argmax(1)]
    return (position % shots.clamp(max=FOLDS)).where(shots > 1, -1)


@dataclass(frozen=True)
class HeldOut:
    "A head that has not seen the examples of one fold"
    head: Head # Fitted to all other examples
    idxs: Tensor # Positions of the examples in the fold


def without_folds(
    head: Head, # A head, which does not change
    features: Tensor, # Features of the support, in the form of `head.compact`
    member: Tensor, # One-hot labels `(n_support, n_way)`
) -> Iterator[HeldOut]:
    """Yield a `HeldOut` for each fold, whose head the next one overwrites.

    Raises `ValueError` if no class has two examples, and for a method that needs more examples than are left.
    """
    if member.sum(0).max() < 2: raise ValueError('no class has two, so that one could be held out')
    spare, fold = head.spare(), folds_of(member)
    for k in range(int(fold.max()) + 1):
        out = fold == k
        yield HeldOut(spare.fit(features[~out], member[~out]), out.nonzero()[:, 0])


def best_temperature(
    scores: Tensor, # Scores `(n, n_way)`
    target: Tensor, # True classes `(n,)`
    doubt: float, # Label smoothing, without which a perfect separation would have temperature 0
) -> float:
    "The temperature with the least cross entropy (Guo et al. 2017, section 4.2)"
    loss = lambda log_t: F.cross_entropy(scores / math.exp(log_t), target, label_smoothing=min(doubt, .5)).item()
    return math.exp(minimize_scalar(loss, bounds=(-9, 12), method='bounded').x)


def temperature_of(
    held_out: Iterable[HeldOut], # Heads that have not seen a fold
    features: Tensor, # Features of all examples
    member: Tensor, # Their one-hot labels `(n_support, n_way)`
) -> float:
    """The best temperature for held-out examples. Raises `ValueError` if none can be held out.

    The label smoothing of all examples adds up to a quarter of one label, which calibrated best on validation classes of
    miniImageNet.
    """
    scores, target = zip(*((o.head(features[o.idxs]), member[o.idxs].argmax(1)) for o in held_out))
    known = finite_scores(torch.cat(scores), 'the examples').double().cpu()
    return best_temperature(known, torch.cat(target).cpu(), .25 / len(known))
