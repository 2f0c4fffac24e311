"`learn.set_support` and `learn.predict`: a learner that answers for new images, before and after `export`"
from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from fastai.vision.core import PILImage
from fastcore.basics import patch
from torch import Tensor, nn

from ..learner.core import FSCLearner
from .bundle import Bundle
from .card import ModelCard
from .classifier import FewShotClassifier
from .fitting import NotFittedError
from .hub import local_folder
from .preprocess import Preprocess
from .support import Label, labelled_items

__all__ = ['LearnerSupport', 'learner_from_bundle']


def _state_of(model: nn.Module) -> list[tuple[int, int]]:
    "Changes whenever a weight or a running statistic does"
    return [(id(t), t._version) for t in (*model.parameters(), *model.buffers())]


class LearnerSupport:
    "The examples of a learner, as bytes; the classifier that they make is made anew when the weights have changed"
    keep: float | None = None # As one has it that was exported before there was this

    def __init__(self,
        preprocess: Preprocess, # From an image to what the encoder takes
        pixels: Tensor, # Bytes `(n_support, channels, height, width)`
        labels: tuple[Label, ...], # The label of each example
        reject: float | None = None, # Below this probability an image is none of the classes
        adapt: Any = None, # An inductive adaptation to the examples, or its name
        keep: float | None = None, # Share of images of the classes to answer
    ):
        self.preprocess, self.pixels, self.labels, self.reject, self.adapt = preprocess, pixels, labels, reject, adapt
        self.keep = keep
        self._made: tuple[Any, FewShotClassifier] | None = None

    def __getstate__(self) -> dict[str, Any]: return {**vars(self), '_made': None}

    def classifier(self, model: Any) -> FewShotClassifier:
        "The classifier for the weights of `model` as they are now"
        state = _state_of(model)
        if self._made is None or self._made[0] != state:
            adapt = getattr(self, 'adapt', None)  # a learner that was exported earlier has none
            made = FewShotClassifier(model, self.preprocess, self.reject, adapt, self.keep).fit_pixels(self.pixels, self.labels)
            self._made = state, made
        return self._made[1]


@patch
def set_support(
    self: FSCLearner,
    items: Any, # Images (files, bytes, PIL images, arrays, tensors), or a folder with a folder of images per class
    labels: Sequence[Any] | None = None, # The label of each image, text or whole numbers; None: the names of the folders
    reject: float | None = None, # Below this probability an image is none of the classes; None: never
    preprocess: Preprocess | None = None, # None: the validation transforms of the loaders
    adapt: Any = None, # An inductive adaptation to the examples, or its name; training goes on with the model itself
    keep: float | None = None, # Share of images of the classes to answer: what is stranger is none of them; None: all
) -> FSCLearner:
    """Set the examples that `predict` classifies by; `export` keeps them. Training afterwards is taken into account.

    Raises as `FewShotClassifier.fit` does, and `ValueError` for transforms that a classifier cannot keep; the examples from
    before then stay.
    """
    items, named = labelled_items(items, labels)
    preprocess = preprocess or Preprocess.from_dls(self.dls)
    support = LearnerSupport(preprocess, torch.cat(list(preprocess.batches(items))), named, reject, adapt, keep)
    support.classifier(self.model)
    self.warn_untrained()
    self.support = support
    return self


@patch
def classifier(self: FSCLearner) -> FewShotClassifier:
    "The classifier that `predict` asks: the model as it is now with the examples of `set_support`"
    if not hasattr(self, 'support'):
        raise NotFittedError('This learner has no examples yet: call learn.set_support(images, labels)')
    return self.support.classifier(self.model)


@patch
def save_bundle(
    self: FSCLearner,
    folder: str | PathLike, # Made if it is not there; an older bundle in it is replaced
    thumbnails: bool = False, # Small pictures of the examples as well?
    card: ModelCard | None = None, # What README.md says of training, accuracies and licences
) -> Path:
    """Write the model, its preprocessing and the examples of `set_support`, if any, as `FewShotClassifier.save` does.

    Plain data: what reads it executes nothing, unlike a pickle. Raises `ValueError` for transforms that a bundle cannot hold.
    """
    known = self.classifier() if hasattr(self, 'support') else FewShotClassifier.from_learner(self)
    return known.save(folder, thumbnails, card)


def learner_from_bundle(
    folder: str | PathLike, # Of a saved classifier, or `hf://owner/name`
    device: str | torch.device | None = None, # None: fastai's default
    **kwargs, # `arch` and `method`, as for `FewShotClassifier.from_pretrained`
) -> FSCLearner:
    """A learner to evaluate, to explain and to deploy anew, without executing anything of the folder.

    Its loaders hold no images, but transform those of domains as the bundle says. Raises as `from_pretrained` does.
    """
    bundle = Bundle.read(local_folder(folder), **kwargs)
    dls = bundle.preprocess.loaders(device)
    return FSCLearner(dls, bundle.model.to(dls.device), loss_func=bundle.model.default_loss())


@patch
def predict(
    self: FSCLearner,
    item: Any, # An image: file, bytes, PIL image, array or tensor
    with_input: bool = False, # Return what the model saw, too?
) -> tuple[Label | None, Tensor, Tensor] | tuple[PILImage, Label | None, Tensor, Tensor]:
    """Label (None: rejected), its position in `learn.classifier().classes_`, and the probabilities `(n_way,)`, as in fastai.

    Raises `NotFittedError` before `set_support`.
    """
    known = self.classifier()
    answer = known.predict(item)
    probabilities = torch.tensor(list(answer.probabilities.values()))
    result = answer.label, probabilities.argmax(), probabilities
    return (known.preprocess.image(item), *result) if with_input else result
