"Calibration and rejection of a classifier, measured on images of its classes and on images of other classes"
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
    right: Any, # Is it the true class? `(n,)`
    bins: int = 15, # Number of bins of equal width
) -> float:
    """Expected calibration error (Guo et al. 2017, equation 5): the mean gap between confidence and accuracy over bins.

    >>> calibration_error([.9, .9, .6], [True, True, False])
    0.26666666666666666
    """
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    of_bin = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(sum(abs((confidence - right)[of_bin == b].sum()) for b in range(bins)) / len(right))


@dataclass(frozen=True)
class Report:
    "Measures of a classifier's answers; nan for those without images"
    accuracy: float # Accuracy of the likeliest class, rejected or not
    confidence: float # Mean probability of the likeliest class, which equals the accuracy if probabilities are calibrated
    calibration_error: float # Mean gap between probability and accuracy, see `calibration_error`
    kept: float # Share of images of the classes that are answered
    refused: float # Share of images of other classes that are rejected
    auroc: float # Area under the ROC curve of strangeness between both kinds of images; 0.5 is chance
    auroc_of_probability: float # The same for the largest probability
    coverage: float # Share of prediction sets that hold the true class
    level: float # The share that they promise, see `PredictionSet`
    set_size: float # Mean number of classes in a set


@patch
def report(
    self: FewShotClassifier,
    items: Any, # Images of its classes that are no examples, or a folder with one folder of images per class
    labels: Sequence[Any] | None = None, # The class of each image; None: the names of the folders
    *,
    strangers: Any = (), # Images of other classes
    coverage: float = .9, # Coverage of the prediction sets
) -> Report:
    "Measure probabilities, thresholds and prediction sets. Raises `ValueError` for labels that the classifier does not have"
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
