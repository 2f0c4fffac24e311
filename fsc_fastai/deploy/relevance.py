"Which pixels of a new image speak for a class, and which against it"
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fastcore.basics import patch
from PIL import Image

from ..briefly import brief_repr
from ..explain.explainer import Explainer
from ..explain.heatmaps import SMOOTH, to_heatmaps
from ..explain.overlay import DIVERGING, Original, overlay_image
from ..explain.pair import PairExplanation
from ..explain.pair import explain_pair as pair_of
from ..explain.to_pixels import explain_images
from .classifier import FewShotClassifier, Prediction
from .support import Label, is_single

__all__ = ['Explanation']


@dataclass(frozen=True)
class Explanation:
    "The answer for an image, and what in it speaks for and against each class"
    prediction: Prediction # As `predict` gives it
    image: Image.Image # What the model saw
    relevance: dict[Label, np.ndarray] # Of its pixels for each class `(height, width)`
    original: Original # The image before it was cut and resized, and where the model looked
    against: Label | None = None # The class that all others are compared with, where one was given
    __repr__ = brief_repr

    @property
    def picture(self) -> Image.Image:
        "The image before it was cut and resized, at most 768 pixels a side"
        return Image.fromarray((self.original.image * 255).round().astype(np.uint8))

    def heatmap(self,
        label: Label | None = None, # The class; None: the likeliest
        cmap: str = DIVERGING, # Red speaks for the class, blue against it; 'PuOr_r' or 'RdBu_r' for the colour-blind
        contours: bool = True, # Lines at a quarter, a half and three quarters of the largest |R|
        smooth: float = SMOOTH, # See `to_heatmaps`
    ) -> Image.Image:
        "The whole image in grey under its relevance, in the size of `picture`. `KeyError` for an unknown class"
        likely = sorted(self.relevance, key=self.prediction.probabilities.__getitem__)
        R = self.relevance[likely[-1] if label is None else label]
        return overlay_image(to_heatmaps(torch.from_numpy(R)[None], smooth=smooth), self.original, cmap, contours)


@patch
def explain(
    self: FewShotClassifier,
    item: Any, # An image
    explainer: Any = None, # `LRP()` (default), `GradientXInput()`, or a callable `(model, f_p)`, as in `explain_images`
    against: Label | None = None, # A class: why is it each of the others, and not this one? Relevance of a difference of scores
) -> Explanation:
    """Relevance of the pixels of one image for every class (Sun et al. 2020, section III), summed over the colours.

    Raises as `predict` does, and `KeyError` for an `against` that is no class.
    """
    if not is_single(item): raise TypeError(f'explain takes one image, found a {type(item).__name__}: call it for each')
    prediction, classes = self.predict(item), self.support.classes
    if against is not None and against not in classes: raise KeyError(against)
    x = self.preprocess([item]).to(self.device)
    found = explain_images(self.head.explained(), self.head.support, self.head.member, x, explainer, support=False,
                           sum_channels=True, against=None if against is None else classes.index(against))
    relevance = dict(zip(classes, found.query[0, :, 0].cpu().numpy()))
    if against is not None: del relevance[against]
    return Explanation(prediction, self.preprocess.image(item), relevance, _original(self, item), against)


@patch
def explain_pair(
    self: FewShotClassifier,
    a: Any, # An image
    b: Any, # Another one, such as an example of a class; examples within the classifier are features, without pixels
    explainer: Explainer | None = None, # `LRP()` (default), `GradientXInput()` or `IntegratedGradients()`
    *,
    grid: int = 8, # Relevance is summed over so many rows and columns of each image
    n_components: int | None = 64, # Random directions of the features that are passed back; None: every feature, exact
    centre: Any = None, # Images whose mean vector is taken off both, for a euclidean distance
) -> PairExplanation:
    """Which part of one image meets which part of another: BiLRP of their similarity (see `fsc_fastai.explain.explain_pair`).

    Raises `TypeError` for a method whose score is no product of two vectors, such as RelationNet and GNNNet.
    """
    x, others = self.preprocess([a, b]).to(self.device), None if centre is None else self.preprocess(centre).to(self.device)
    found = pair_of(self.model, x[0], x[1], explainer, grid, n_components, others)
    return PairExplanation(found.relevance, found.similarity, (_original(self, a), _original(self, b)))


def _original(classifier: FewShotClassifier, item: Any) -> Original:
    im = classifier.preprocess.open(item)
    return Original.of(im, classifier.preprocess.box(im))

