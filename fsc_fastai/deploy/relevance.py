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
    "The answer for an image, and the relevance of its pixels for each class"
    prediction: Prediction # As `predict` gives it
    image: Image.Image # The image as the model saw it
    relevance: dict[Label, np.ndarray] # Relevance of its pixels for each class `(height, width)`
    original: Original # The image before it was cropped and resized, and the box that the model saw
    against: Label | None = None # The class that all others are compared with, if any
    __repr__ = brief_repr

    @property
    def picture(self) -> Image.Image:
        "The image before it was cropped and resized, at most 768 pixels a side"
        return Image.fromarray((self.original.image * 255).round().astype(np.uint8))

    def heatmap(self,
        label: Label | None = None, # The class; None: the likeliest
        cmap: str = DIVERGING, # Red speaks for the class, blue against it; 'PuOr_r' or 'RdBu_r' for the colour-blind
        contours: bool = True, # Lines at a quarter, a half and three quarters of the largest |R|
        smooth: float = SMOOTH, # See `to_heatmaps`
    ) -> Image.Image:
        "A picture of the relevance over the grey image, of the size of `picture`. Raises `KeyError` for an unknown class"
        likely = sorted(self.relevance, key=self.prediction.probabilities.__getitem__)
        R = self.relevance[likely[-1] if label is None else label]
        return overlay_image(to_heatmaps(torch.from_numpy(R)[None], smooth=smooth), self.original, cmap, contours)


@patch
def explain(
    self: FewShotClassifier,
    item: Any, # An image
    explainer: Any = None, # As in `explain_images`; None: `LRP.faithful()`, `LRP.published()` as the paper
    against: Label | None = None, # A class; relevance of the difference between the scores of each other class and this one
) -> Explanation:
    """Relevance of the pixels of one image for every class, summed over the colours.

    Raises as `predict` does, and `KeyError` for an unknown class in `against`.

        classifier.explain('new.jpg').heatmap().save('why.png')
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
    grid: int = 8, # Rows and columns of the grid over which relevance is summed
    n_components: int | None = 64, # Random directions of the features to pass back; None: every feature, which is exact
    centre: Any = None, # Images whose mean vector is subtracted from both, for a Euclidean distance
) -> PairExplanation:
    """Which parts of two images make them similar: BiLRP of their similarity (see `fsc_fastai.explain.explain_pair`).

    Raises `TypeError` for a method whose score is no product of two vectors, such as RelationNet and GNNNet.
    """
    x, others = self.preprocess([a, b]).to(self.device), None if centre is None else self.preprocess(centre).to(self.device)
    found = pair_of(self.model, x[0], x[1], explainer, grid, n_components, others)
    return PairExplanation(found.relevance, found.similarity, (_original(self, a), _original(self, b)))


def _original(classifier: FewShotClassifier, item: Any) -> Original:
    im = classifier.preprocess.open(item)
    return Original.of(im, classifier.preprocess.box(im))

