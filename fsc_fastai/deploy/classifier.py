"`FewShotClassifier`: a few examples of each class in, labels and probabilities out, with scikit-learn's habits"
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..answers import Prediction, answered
from ..data.size import Size, size_text
from ..encode.encoder import TokenPool, Weights
from ..learner.core import FSCLearner
from ..methods import FewShotModel
from ..methods.finite import check_weights, finite_scores
from .backbone import DEFAULT_HEAD, backbone_model
from .bundle import Bundle
from .card import ModelCard, write_card
from .checks import BundleError
from .fitting import BATCH, SupportFitter
from .hub import local_folder, upload
from .preprocess import Preprocess
from .strangeness import Known
from .support import as_items, is_single, labelled_items

__all__ = ['FewShotClassifier', 'Prediction']


class FewShotClassifier(SupportFitter):
    """Classifies new images from a few examples of each class.

        classifier = FewShotClassifier.from_backbone(arch)          # or .from_learner(learn), or .from_pretrained(folder)
        classifier.fit(files, labels)                               # or .fit(folder_of_class_folders)
        classifier.predict('new.jpg').label

    Images are files, bytes, PIL images, arrays or tensors. The classifier is a scikit-learn estimator, so `clone`,
    `cross_val_score` and `GridSearchCV` take it.

    An answer depends on the image and the examples alone, never on the other images that are asked about: where a published
    method uses statistics of the batch, those of the examples take their place, fixed in `fit` (docs/recipes.md has what this
    costs).

    Each example is held out in turn, which calibrates the probabilities and gives `keep` its limit; `calibrated_` says what
    chose the temperature. With one example of each class none can be held out: then a warning says so, and `calibrated_` is None.
    """
    # Methods that other files add, for those who check types
    calibrate: Callable[..., Any]
    explain: Callable[..., Any]
    predict_set: Callable[..., Any]
    predict_sets: Callable[..., list]
    to_onnx: Callable[..., Path]

    @classmethod
    def from_backbone(cls,
        arch: str | nn.Module, # Any timm name, with or without the tag of its weights; or a module with `pretrained_cfg`
        weights: Weights | None = None, # Checkpoint, state dict, or `hf-hub:owner/name`; None: timm's weights of this name
        head: Any = DEFAULT_HEAD, # 'lda', 'ridge', 'logistic', 'proto', 'cosine', or another method or adaptation of features
        *,
        pool: TokenPool | None = 'auto', # How tokens become features: 'auto' (as in training), 'cls', 'mean', 'both'; None: maps
        size: Size | None = None, # Size of the images; None: the one that the weights were trained on
        remap: bool = False, # Match the tensors of the checkpoint by their order, where their names differ from timm's
        reject: float | None = None, # An image whose largest probability is lower belongs to none of the classes; None: never
        adapt: Any = None, # An inductive adaptation, or its name, that is run on every new set of examples
        keep: float | None = None, # Share of images of the classes to answer; stranger images belong to none. None: answer all
    ) -> FewShotClassifier:
        """A classifier on a frozen pretrained backbone. Nothing is trained: a few examples of each class are enough.

        Images are resized, cropped and normalised as they were when the weights were trained. Warns if the backbone has no
        pretrained weights. Raises `ValueError` for an unknown backbone or head (and offers the nearest names), for weights of
        another backbone, and for a head that would have to be trained; `ConnectionError` where timm's weights are out of reach.

            FewShotClassifier.from_backbone('resnet50.a1_in1k').fit('examples').predict('new.jpg')
        """
        return cls(*backbone_model(arch, weights, head, pool, size, remap), reject, adapt, keep)

    @classmethod
    def from_learner(cls,
        learn: FSCLearner, # A trained learner
        preprocess: Preprocess | None = None, # None: the validation transforms of its loaders
        reject: float | None = None, # An image whose largest probability is lower belongs to none of the classes; None: never
        adapt: Any = None, # An inductive adaptation, or its name, that is run on every new set of examples
        keep: float | None = None, # Share of images of the classes to answer; stranger images belong to none. None: answer all
    ) -> FewShotClassifier:
        """A classifier with a copy of the learner's model as it is now, and no examples yet.

        With `adapt` the model is adapted to every new set of examples. `save` keeps an adapted encoder as it is; after loading,
        it is not adapted any further. Raises `ValueError` for transforms that a bundle cannot hold, and for a transductive
        adaptation.
        """
        learn.warn_untrained()
        return cls(learn.model, preprocess or Preprocess.from_dls(learn.dls), reject, adapt, keep)

    @classmethod
    def from_pretrained(cls,
        folder: str | PathLike, # Folder of a saved classifier, or `hf://owner/name` on the Hugging Face Hub
        arch: nn.Module | None = None, # The backbone, if it was a module of your own
        method: type[FewShotModel] | None = None, # The method, if it was a class of your own that is not registered
        **kwargs, # For `huggingface_hub.snapshot_download`, such as `revision` and `token`
    ) -> FewShotClassifier:
        """Load a classifier that `save` wrote. Nothing in the folder is executed; only `hf://owner/name` uses the network.

        Raises `FileNotFoundError` where there is none, and `BundleError` for a bundle that is corrupt or contradicts itself.
        """
        bundle = Bundle.read(local_folder(folder, **kwargs), arch, method)
        classifier = cls(bundle.model, bundle.preprocess, bundle.reject, keep=bundle.keep)
        classifier._temperature, classifier.calibrated_ = bundle.temperature, bundle.calibrated
        return classifier if bundle.support is None else classifier._take(bundle.support, calibrate=False)

    def save(self,
        folder: str | PathLike, # Created if needed; an older classifier in it is replaced as a whole or not at all
        thumbnails: bool = False, # Keep small pictures of the examples as well
        card: ModelCard | None = None, # What README.md says of training, accuracies and licences
        half: bool = False, # Store matrices in half precision: half the size, answers differ in the third digit
    ) -> Path:
        """Write model and examples (as features) as JSON and safetensors, which `from_pretrained` loads, and a README.md.

        A README.md that `save` did not write stays, with a warning. Raises `BundleError` for what could not be loaded again and
        for a model whose weights or scores are not finite; an older classifier in the folder then stays.
        """
        try: self._check_finite('not saved')
        except ValueError as e: raise BundleError(str(e)) from e
        support = self._support
        if support is not None and not thumbnails: support = replace(support, thumbnails=None)
        bundle = Bundle(self.model, self.preprocess, self.reject, self.temperature, support, self.keep, self.calibrated_, half)
        text = (card or ModelCard()).text(bundle).encode()
        folder = bundle.write(folder)
        write_card(folder, text)
        return folder

    def push_to_hub(self,
        repo_id: str, # `owner/name`, or `hf://owner/name`
        thumbnails: bool = False, # Keep small pictures of the examples as well
        card: ModelCard | None = None, # What README.md says of training, accuracies and licences
        **kwargs, # For `HfApi.create_repo`, such as `private` and `token`
    ) -> str:
        "Save to the Hugging Face Hub and return the address of the commit. A README.md that `save` did not write stays"
        with TemporaryDirectory() as folder: return upload(self.save(folder, thumbnails, card), repo_id, **kwargs)

    def __repr__(self) -> str:
        known = f'{len(self.classes_)} classes' if self._support else 'no examples'
        return f'{type(self).__name__}({type(self.model).__name__}, {size_text(self.preprocess.size)}, {known})'

    @overload
    def predict(self, item: str | bytes | PathLike | Image.Image) -> Prediction: ...
    @overload
    def predict(self, item: list | tuple) -> np.ndarray: ...
    @overload
    def predict(self, item: Any) -> Any: ...

    def predict(self,
        item: Any, # One image (file, bytes, PIL image, array or tensor) or several
    ) -> Any:
        """A `Prediction` for one image; for several, their labels `(n,)` as in scikit-learn, with None for rejected images.

        Raises `NotFittedError` before `fit`.
        """
        if is_single(item): return self.predict_batch([item])[0]
        labels = [answer.label for answer in self.predict_batch(item)]
        return np.array(labels, object if None in labels else self.classes_.dtype)

    def predict_batch(self,
        items: Any, # Images, as a sequence or an array `(n, ...)`
    ) -> list[Prediction]:
        "A `Prediction` for each of several images, in their order"
        classes, limit = self.support.classes, self.limit
        scores, strangeness = self._asked(items)
        return [answered(dict(zip(classes, row)), strange, self.reject, limit)
                for row, strange in zip(self._probabilities(scores).tolist(), strangeness.tolist(), strict=True)]

    def predict_proba(self,
        items: Any, # Images, as for `predict_batch`
    ) -> np.ndarray:
        "Probabilities `(n, n_way)`; the columns are `classes_`"
        return self._probabilities(self.scores(items)).numpy()

    def score(self,
        items: Any, # Images, or a folder with one folder of images per class
        labels: Sequence[Any] | None = None, # The label of each image; None: the names of the folders
    ) -> float:
        "Accuracy: the share of images whose likeliest class is their label, rejected or not"
        items, labels = labelled_items(items, labels)
        likeliest = self.predict_proba(items).argmax(1)
        return float(np.mean([self.support.classes[i] == o for i, o in zip(likeliest, labels)]))

    def scores(self,
        items: Any, # Images, as for `predict_batch`
    ) -> Tensor:
        "Scores `(n, n_way)` on the CPU, before they become probabilities. Raises `ValueError` if they are not finite"
        return self._asked(items)[0]

    def strangeness(self,
        items: Any, # Images, as for `predict_batch`
    ) -> np.ndarray:
        "Distance `(n,)` of each image from the nearest class mean, between features of unit length; `keep` limits it"
        return self._asked(items)[1].numpy()

    def features_of(self,
        items: Any, # Images, as for `predict_batch`
    ) -> Iterator[Tensor]:
        "Yield the features of images in batches, in the format of the head. Raises as `predict` does"
        if not self.fitted: raise ValueError(self.head.problem(len(self.support.classes)))
        for pixels in self.preprocess.batches(as_items(items), BATCH): yield self.head.compact(self.encode(pixels))

    @torch.no_grad()
    def _asked(self, items: Any) -> tuple[Tensor, Tensor]:
        "Scores `(n, n_way)` and strangeness `(n,)` of images, on the CPU"
        known = cast(Known, self._known)
        found = [(self.head(f).cpu(), known.strangeness(f).cpu()) for f in self.features_of(items)]
        scores, strangeness = zip(*found) if found else ((torch.empty(0, len(self.support.classes)),), (torch.empty(0),))
        return finite_scores(torch.cat(scores), 'these images'), torch.cat(strangeness)

    def _probabilities(self, scores: Tensor) -> Tensor:
        return finite_scores((scores.double() / self.temperature).softmax(1), 'these images')

    @torch.no_grad()
    def _check_finite(self, what: str) -> None:
        "`ValueError` for weights, or scores of an example, that are not finite"
        check_weights(self.model, what)
        if self.fitted: finite_scores(self.head(self.support.features[:1]), 'an example')
