"Which pixels of a new image speak for a class, and which against it"
from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from fastcore.basics import patch
from PIL import Image

from ..briefly import brief_repr
from ..explain.heatmaps import to_heatmaps
from ..explain.to_pixels import explain_images
from ..methods.head import Head
from .classifier import FewShotClassifier, Prediction
from .support import Label, is_single

__all__ = ['Explanation']


@dataclass(frozen=True)
class Explanation:
    "The answer for an image, and what in it speaks for and against each class"
    prediction: Prediction # As `predict` gives it
    image: Image.Image # What the model saw
    relevance: dict[Label, np.ndarray] # Of its pixels for each class `(height, width)`
    __repr__ = brief_repr

    def heatmap(self,
        label: Label | None = None, # The class; None: the likeliest
        opacity: float = 0.6, # Of the strongest colour
    ) -> Image.Image:
        "The image in grey under its relevance: red speaks for the class, blue against it. `KeyError` for an unknown class"
        R = self.relevance[self.prediction.nearest if label is None else label]
        heat = to_heatmaps(torch.from_numpy(R)[None])
        colour = matplotlib.colormaps['seismic']((heat + 1) / 2)[..., :3] * 255
        grey = np.asarray(self.image.convert('L').convert('RGB'), dtype=float)
        share = opacity * np.abs(heat)[..., None]**.5
        return Image.fromarray((share * colour + (1 - share) * grey).round().astype(np.uint8))


@patch
def explain(
    self: FewShotClassifier,
    item: Any, # An image
    explainer: Any = None, # `LRP()` (default), `GradientXInput()`, or a callable `(model, f_p)`, as in `explain_images`
) -> Explanation:
    """Relevance of the pixels of one image for every class (Sun et al. 2020, section III), summed over the colours.

    Raises as `predict` does.
    """
    if not is_single(item): raise TypeError(f'explain takes one image, found a {type(item).__name__}: call it for each')
    prediction = self.predict(item)
    x = self.preprocess([item]).to(self.device)
    found = explain_images(_with_known_support(self.head), self.head.support, self.head.member, x, explainer, support=False,
                           sum_channels=True)
    relevance = dict(zip(self.support.classes, found.query[0, :, 0].cpu().numpy()))
    return Explanation(prediction, self.preprocess.image(item), relevance)


def _with_known_support(head: Head) -> Any:
    "The model, whose encoder lets pass the support features that the classifier has kept in the place of images"
    model: Any = copy.copy(head.model)
    model.encode = lambda x: x if x.shape[1:] == head.support.shape[1:] else head.model.encode(x)
    return model
