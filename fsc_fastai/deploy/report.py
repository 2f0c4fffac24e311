"How honest a classifier's answers are, on images whose classes are known and on images of none of its classes"
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastcore.basics import patch
from sklearn.metrics import roc_auc_score

from ..answers import Prediction
from .classifier import FewShotClassifier
from .support import labelled_items

__all__ = ['Report', 'calibration_error']

NAN = float('nan')


def calibration_error(
    confidence: Any, # Probability of the likeliest class `(n,)`
    right: Any, # Was it the class? `(n,)`
    bins: int = 15, # Of equal width
) -> float:
    """Expected calibration error (Guo et al. 2017, equation 5): the mean gap between confidence and accuracy, in bins.

    >>> calibration_error([.9, .9, .6], [True, True, False])
    0.26666666666666666
    """
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    of_bin = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(sum(abs((confidence - right)[of_bin == b].sum()) for b in range(bins)) / len(right))


@dataclass(frozen=True)
class Report:
    "Shares of images; `nan` for what there were no images for"
    accuracy: float # Of the likeliest class, rejected or not
    confidence: float # Mean probability of the likeliest class: the accuracy, if probabilities are right on the whole
    calibration_error: float # Mean gap between probability and accuracy, see `calibration_error`
    kept: float # Images of the classes that are answered
    refused: float # Strangers that are not
    auroc: float # How well strangeness tells strangers from images of the classes, whatever the limit; 0.5 is chance
    auroc_of_probability: float # The same of the probability
    coverage: float # Prediction sets with the right class
    level: float # What they promise, see `PredictionSet`
    set_size: float # Classes in a set, on average


@patch
def report(
    self: FewShotClassifier,
    items: Any, # Images of its classes that are no examples, or a folder with a folder of images per class
    labels: Sequence[Any] | None = None, # The class of each image; None: the names of the folders
    *,
    strangers: Any = (), # Images of none of its classes
    coverage: float = .9, # Of the prediction sets
) -> Report:
    "Measure probabilities, thresholds and prediction sets. Raises `ValueError` for labels of no class of the classifier"
    items, named = labelled_items(items, labels)
    if unknown := sorted({str(o) for o in named} - {str(o) for o in self.support.classes}):
        raise ValueError(f'no class {", ".join(unknown[:5])}: pass images of other classes as strangers')
    known, other = self.predict_batch(items), self.predict_batch(strangers)
    sets = self.predict_sets(items, coverage)  # type: ignore[attr-defined]
    right = [o.nearest == label for o, label in zip(known, named, strict=True)]
    confidence = [o.confidence for o in known]
    return Report(
        float(np.mean(right)), float(np.mean(confidence)), calibration_error(confidence, right),
        kept=float(np.mean([o.label is not None for o in known])),
        refused=float(np.mean([o.label is None for o in other])) if other else NAN,
        auroc=_auroc(known, other, lambda o: -o.strangeness),
        auroc_of_probability=_auroc(known, other, lambda o: o.confidence),
        coverage=float(np.mean([label in found for found, label in zip(sets, named, strict=True)])),
        level=sets[0].level, set_size=float(np.mean([len(o) for o in sets])))


def _auroc(known: list[Prediction], other: list[Prediction], of: Any) -> float:
    if not other: return NAN
    return float(roc_auc_score(np.repeat([1, 0], [len(known), len(other)]), [of(o) for o in (*known, *other)]))
