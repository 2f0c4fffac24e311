"Sets of classes that hold the right one as often as is asked: \"either of these\""
from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from fastcore.basics import patch
from torch import Tensor

from .classifier import FewShotClassifier
from .support import Label, is_single

__all__ = ['PredictionSet', 'proven_coverage']


@dataclass(frozen=True)
class PredictionSet:
    """The classes that an image may be of, the likeliest first; none where it is unlike all of them.

    `level` is the share of such sets that hold the right class, as it is measured; `guaranteed` is the share that they hold
    whatever the images are like, provided that new images are drawn as the examples were.
    """
    labels: tuple[Label, ...] # Whose p-value is above 1 − `coverage`
    p_values: dict[Label, float] # Share of held-out examples, and itself, that fit their class no better than the image this one
    coverage: float # As asked for
    level: float # `coverage`, or more: so many examples have p-values in steps
    guaranteed: float # Never more than 2·`coverage` − 1; 1 where every set has all classes

    def __contains__(self, label: Label) -> bool: return label in self.labels
    def __len__(self) -> int: return len(self.labels)


@patch
def predict_set(
    self: FewShotClassifier,
    item: Any, # An image
    coverage: float = .9, # Share of the sets that should hold the right class
) -> PredictionSet:
    "The classes that one image may be of, see `predict_sets`. Raises `TypeError` for several images"
    if not is_single(item): raise TypeError(f'predict_set takes one image, found a {type(item).__name__}: use predict_sets')
    return self.predict_sets([item], coverage)[0]  # type: ignore[attr-defined]


@patch
@torch.no_grad()
def predict_sets(
    self: FewShotClassifier,
    items: Any, # Images, as in `predict_batch`
    coverage: float = .9, # Share of the sets that should hold the right class
) -> list[PredictionSet]:
    """Cross-conformal sets (Vovk 2015) by the examples alone, in the order of the images.

    A head that has not seen a fold of the examples, one of each class, compares how likely it takes their class with how likely
    it takes each class for the image. Sets hold the right class with a share of `level` where classes are as frequent as among
    the examples; proven is `guaranteed`, less than that. Warns, and gives all classes, where there are too few examples: fewer
    than 1/(1 − coverage) − 1 that have another of their class. Raises `ValueError` for a coverage that is no share.
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
            better += _fitting_no_better(log_p(o.head, self.support.features[o.idxs]), label, log_p(o.head, features)).cpu()
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
    return [_set_of([(classes[i], row[i]) for i in order], coverage, level, guaranteed)
            for order, row in zip(likeliest, p.tolist(), strict=True)]


def _fitting_no_better(held_out: Tensor, label: Tensor, query: Tensor) -> Tensor:
    "How many held-out examples fit their class no better than each query fits each class `(n_query, n_way)`"
    own = held_out.gather(1, label[:, None])
    return (own[:, :, None] <= query[None]).sum(0)


def proven_coverage(
    sizes: list[int], # Of the folds that are held out in turn
    alpha: float, # One minus the coverage that is asked for
) -> float:
    """The coverage that is proven for folds of these sizes.

    The p-value is near an average of one for each fold, twice which is a p-value again (Vovk and Wang 2020). For folds of one
    size the bound of Romano et al. (2020, theorem 3) may be better.
    """
    n, k = sum(sizes), len(sizes)
    excess = 2 * (1 - alpha) * (k - 1) / (n + k)
    if len(set(sizes)) == 1: excess = min(excess, (1 - k / n) / (k + 1))
    return max(0., 1 - 2 * alpha - excess)


def _set_of(p_values: list[tuple[Label, float]], coverage: float, level: float, guaranteed: float) -> PredictionSet:
    "From the p-values of the classes, the likeliest first"
    labels = tuple(c for c, p in p_values if p > 1 - coverage + 1e-9)
    return PredictionSet(labels, dict(p_values), coverage, level, guaranteed)
