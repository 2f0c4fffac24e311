"`learn.set_support` and `learn.predict`: a learner that classifies new images, before and after `export`"
from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from fastai.vision.core import PILImage
from fastcore.basics import patch
from torch import Tensor

from ..learner.core import FSCLearner
from .bundle import Bundle
from .card import ModelCard
from .classifier import FewShotClassifier
from .fitting import NotFittedError
from .hub import local_folder
from .preprocess import Preprocess
from .support import Label, labelled_items

__all__ = ['LearnerSupport', 'learner_from_bundle']


class LearnerSupport:
    "The examples of a learner as bytes, from which a classifier is made again whenever the weights have changed"
    def __init__(self,
        preprocess: Preprocess, # Turns an image into the input of the encoder
        pixels: Tensor, # Bytes `(n_support, channels, height, width)`
        labels: tuple[Label, ...], # The label of each example
        reject: float | None = None, # An image whose largest probability is lower belongs to none of the classes
        adapt: Any = None, # An inductive adaptation to the examples, or its name
        keep: float | None = None, # Share of images of the classes to answer
    ):
        self.preprocess, self.pixels, self.labels, self.reject, self.adapt = preprocess, pixels, labels, reject, adapt
        self.keep = keep
        self._made: tuple[Any, FewShotClassifier] | None = None

    def __getstate__(self) -> dict[str, Any]: return {**vars(self), '_made': None}

    def classifier(self, model: Any) -> FewShotClassifier:
        "The classifier for the current weights of `model`"
        # changes whenever a weight or a running statistic does
        state = [(id(t), t._version) for t in (*model.parameters(), *model.buffers())]
        if self._made is None or self._made[0] != state:
            made = FewShotClassifier(model, self.preprocess, self.reject, self.adapt, self.keep)
            self._made = state, made.fit_pixels(self.pixels, self.labels)
        return self._made[1]


@patch
def set_support(
    self: FSCLearner,
    items: Any, # Images (files, bytes, PIL images, arrays, tensors), or a folder with one folder of images per class
    labels: Sequence[Any] | None = None, # The label of each image, text or whole numbers; None: the names of the folders
    reject: float | None = None, # An image whose largest probability is lower belongs to none of the classes; None: never
    preprocess: Preprocess | None = None, # None: the validation transforms of the loaders
    adapt: Any = None, # An inductive adaptation to the examples, or its name; training continues with the plain model
    keep: float | None = None, # Share of images of the classes to answer; stranger images belong to none. None: answer all
) -> FSCLearner:
    """Set the examples by which `predict` classifies. `export` keeps them, and `predict` uses the weights of later training.

    Raises as `FewShotClassifier.fit` does, and `ValueError` for transforms that a classifier cannot keep; earlier examples then
    stay.
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
    "The classifier behind `predict`: the current model with the examples of `set_support`"
    if not hasattr(self, 'support'):
        raise NotFittedError('This learner has no examples yet: call learn.set_support(images, labels)')
    return self.support.classifier(self.model)


@patch
def save_bundle(
    self: FSCLearner,
    folder: str | PathLike, # Created if needed; an older bundle in it is replaced
    thumbnails: bool = False, # Keep small pictures of the examples as well
    card: ModelCard | None = None, # What README.md says of training, accuracies and licences
) -> Path:
    """Write the model, its preprocessing and the examples of `set_support`, if any, as `FewShotClassifier.save` does.

    A bundle is plain data: unlike a pickle, it executes nothing when it is loaded. Raises `ValueError` for transforms that it
    cannot hold.
    """
    known = self.classifier() if hasattr(self, 'support') else FewShotClassifier.from_learner(self)
    return known.save(folder, thumbnails, card)


def learner_from_bundle(
    folder: str | PathLike, # Folder of a saved classifier, or `hf://owner/name`
    device: str | torch.device | None = None, # None: fastai's default
    **kwargs, # `arch` and `method`, as for `FewShotClassifier.from_pretrained`
) -> FSCLearner:
    """A learner from a saved classifier, to evaluate, explain or deploy again. Nothing in the folder is executed.

    Its loaders have no images; they transform images of other domains as the bundle says. Raises as `from_pretrained` does.
    """
    bundle = Bundle.read(local_folder(folder), **kwargs)
    dls = bundle.preprocess.loaders(device)
    return FSCLearner(dls, bundle.model.to(dls.device), loss_func=bundle.model.default_loss())


@patch
def predict(
    self: FSCLearner,
    item: Any, # An image: file, bytes, PIL image, array or tensor
    with_input: bool = False, # Also return the image as the model saw it
) -> tuple[Label | None, Tensor, Tensor] | tuple[PILImage, Label | None, Tensor, Tensor]:
    """As in fastai, the label (None if rejected), its position in `learn.classifier().classes_`, and probabilities `(n_way,)`.

    Raises `NotFittedError` before `set_support`.
    """
    known = self.classifier()
    answer = known.predict(item)
    probabilities = torch.tensor(list(answer.probabilities.values()))
    result = answer.label, probabilities.argmax(), probabilities
    return (known.preprocess.image(item), *result) if with_input else result
