"Prediction sets: sets of classes that hold the true class with a given probability (\"either of these\")"
from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from fastcore.basics import patch

from .classifier import FewShotClassifier
from .support import Label, is_single

__all__ = ['PredictionSet', 'proven_coverage']


@dataclass(frozen=True)
class PredictionSet:
    """The possible classes of an image, the likeliest first; empty if the image is unlike all classes.

    `level` is the share of sets that hold the true class in practice. `guaranteed` is a proven lower bound, for any images
    that are drawn like the examples.
    """
    labels: tuple[Label, ...] # Classes whose p-value is above 1 − `coverage`
    p_values: dict[Label, float] # Share of held-out examples, counting the image, that fit their class no better than the image
    coverage: float # The coverage that was asked for
    level: float # `coverage` rounded up, since a finite number of examples has p-values in steps
    guaranteed: float # At most 2·`coverage` − 1; 1 if every set has all classes

    def __contains__(self, label: Label) -> bool: return label in self.labels
    def __len__(self) -> int: return len(self.labels)


@patch
def predict_set(
    self: FewShotClassifier,
    item: Any, # An image
    coverage: float = .9, # Share of the sets that should hold the true class
) -> PredictionSet:
    "The `PredictionSet` of one image, see `predict_sets`. Raises `TypeError` for several images"
    if not is_single(item): raise TypeError(f'predict_set takes one image, found a {type(item).__name__}: use predict_sets')
    return self.predict_sets([item], coverage)[0]  # type: ignore[attr-defined]


@patch
@torch.no_grad()
def predict_sets(
    self: FewShotClassifier,
    items: Any, # Images, as for `predict_batch`
    coverage: float = .9, # Share of the sets that should hold the true class
) -> list[PredictionSet]:
    """Cross-conformal prediction sets (Vovk 2015) from the examples alone, one per image in order.

    Each fold of the examples is held out in turn. A head fitted to the others compares the probability of their class with the
    probability of each class for the image. A share `level` of the sets holds the true class if classes are as frequent as
    among the examples; `guaranteed` is the lower share that is proven. With too few examples, fewer than
    1/(1 − coverage) − 1 that can be held out, all sets have all classes, and a warning says so. Raises `ValueError` for a
    coverage that is not between 0 and 1.
    """
    if not 0 < coverage < 1: raise ValueError(f'coverage={coverage}: wanted a share between 0 and 1')
    classes, alpha = self.support.classes, 1 - coverage
    features = torch.cat([self.support.features[:0], *self.features_of(items)])
    log_p = lambda head, f: (head(f).double() / self.temperature).log_softmax(1)
    better, sizes, why = torch.zeros(len(features), len(classes)), [], ''
    try:
        for o in self.held_out():
            sizes.append(len(o.idxs))
            label = self.support.member[o.idxs].argmax(1)
            own = log_p(o.head, self.support.features[o.idxs]).gather(1, label[:, None])
            better += (own[:, :, None] <= log_p(o.head, features)[None]).sum(0).cpu()  # held-out examples that fit no better
    except ValueError as e: sizes, why = [], f' ({e})'
    n = sum(sizes)
    misses = math.floor(alpha * (n + 1) + 1e-9)
    if misses < 1:
        least = math.ceil(1 / alpha - 1e-9) - 1
        warnings.warn(f'sets of coverage {coverage:g} have all classes: {least} examples have to be held out, {n} can be{why}. '
                      'Bring more, or ask for less', stacklevel=4)
    p = (1 + better.double()) / (n + 1) if misses else torch.ones_like(better)
    level = 1 - misses / (n + 1)
    # of a class of one example nothing is held out, so that nothing is known of its images
    guaranteed = 1. if misses < 1 else 0. if n < len(self.support.labels) else proven_coverage(sizes, alpha)
    likeliest = log_p(self.head, features).argsort(1, descending=True).tolist()
    return [PredictionSet(tuple(classes[i] for i in order if row[i] > alpha + 1e-9), {classes[i]: row[i] for i in order},
                          coverage, level, guaranteed) for order, row in zip(likeliest, p.tolist(), strict=True)]


def proven_coverage(
    sizes: list[int], # Sizes of the folds that are held out in turn
    alpha: float, # One minus the coverage
) -> float:
    """The proven coverage for folds of these sizes.

    The p-value is nearly an average of p-values of the folds, and twice an average is a p-value (Vovk and Wang 2020). For folds
    of equal size the bound of Romano et al. (2020, theorem 3) may be better.
    """
    n, k = sum(sizes), len(sizes)
    excess = 2 * (1 - alpha) * (k - 1) / (n + k)
    if len(set(sizes)) == 1: excess = min(excess, (1 - k / n) / (k + 1))
    return max(0., 1 - 2 * alpha - excess)
