"`FewShotClassifier`: a few examples of each class in, labels and probabilities out, with scikit-learn's habits"
from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast, overload

import numpy as np
import torch
from PIL import Image
from sklearn import exceptions
from torch import Tensor, nn

from ..adapt.base import as_adaptation
from ..answers import Prediction, answered
from ..data.names import composed
from ..data.size import Size, size_text
from ..encode.encoder import TokenPool, Weights
from ..learner.core import FSCLearner
from ..methods import FewShotModel
from ..methods.finite import check_weights, finite_scores
from ..tensors import largest_output
from .backbone import DEFAULT_HEAD, backbone_model
from .bundle import Bundle
from .card import ModelCard, write_card
from .checks import BundleError
from .estimator import ImageEstimator
from .held_out import HeldOut, temperature_of, without_folds
from .hub import local_folder, upload
from .preprocess import Preprocess
from .strangeness import Known, check_keep
from .support import Label, Support, as_items, is_single, labelled_items, thumbnails_of

__all__ = ['FewShotClassifier', 'Prediction', 'NotFittedError']

BATCH = 64
AT_ONCE = 64 << 20 # Bytes of the largest tensor within the encoder, on a CPU


class NotFittedError(exceptions.NotFittedError):
    "A classifier without examples was asked for an answer"


class FewShotClassifier(ImageEstimator):
    """Labels new images by a few examples of each class.

        classifier = FewShotClassifier.from_backbone(arch)          # or .from_learner(learn), or .from_pretrained(folder)
        classifier.fit(files, labels)                               # or .fit(folder_of_class_folders)
        classifier.predict('new.jpg').label

    Images are files, bytes, PIL images, arrays or tensors. It is an estimator of scikit-learn's: `clone`, `cross_val_score`
    and `GridSearchCV` take it. An answer depends on the image and the examples alone, not on what else is asked: batch
    statistics of the published methods are replaced by those of the examples, fixed in `fit`.
    What that changes was measured on two models of each method and shot, on 60 episodes of each of five glyph domains
    (`benchmarks/statistics.py`). A RelationNet loses up to 1.6 points of accuracy at 5 shots and up to 1.9 at 1 shot, where
    published statistics see all 25 queries of a balanced episode; where they see one query at a time, it gains 2 to 9. A
    GNNNet changes by −0.7 to +0.3 points at 5 shots and by −2.6 to +1.8 at 1 shot.

    Probabilities are calibrated by the examples, each of which is held out in turn, and so is what `keep` needs; `calibrated_`
    says by what. One example of each class leaves none to hold out: a warning says so, and `calibrated_` stays None.
    """
    # Methods that other files add, for those who check types
    calibrate: Callable[..., Any]
    explain: Callable[..., Any]
    predict_set: Callable[..., Any]
    predict_sets: Callable[..., list]
    to_onnx: Callable[..., Path]

    def __init__(self,
        model: FewShotModel, # Copied: training it on changes nothing here
        preprocess: Preprocess, # From an image to what the encoder takes
        reject: float | None = None, # Below this probability an image is none of the classes; None: never
        adapt: Any = None, # An inductive adaptation to the examples, or its name: the encoder too, if it is on images
        keep: float | None = None, # Share of images of the classes to answer: what is stranger is none of them; None: all
    ):
        for given, cls in ((model, FewShotModel), (preprocess, Preprocess)):
            if not isinstance(given, cls): raise TypeError(f'a {cls.__name__} is needed, found {given!r:.60}')
        check_keep(keep)
        self.preprocess, self.reject, self.keep = preprocess, reject, keep
        self._temperature = 1.
        self.calibrated_: str | None = None # By what the temperature was chosen: 'examples', 'other classes' or 'by hand'
        self._known: Known | None = None # Where the classes are
        self._warned = False # That the examples do not calibrate
        self.adapt = cast(Any, as_adaptation(adapt))
        self._trained: FewShotModel | None = None # What is adapted, where something is
        if self.adapt is not None:
            if self.adapt.transductive:
                raise ValueError(f'{self.adapt.name} answers queries together, a classifier answers each by itself: use an '
                                 'inductive adaptation, such as PA or FineTune')
            self._trained = copy.deepcopy(model).eval()
            if not self.adapt.on_images: model = self.adapt(model)
        self.head = model.head(statistics='support')
        self._support: Support | None = None
        self._at_once: int | None = None # Images to encode at once; None: not yet known

    @classmethod
    def from_backbone(cls,
        arch: str | nn.Module, # Any name of timm's, with the tag of its weights if you like; or a module with `pretrained_cfg`
        weights: Weights | None = None, # Checkpoint, state dict, or `hf-hub:owner/name`; None: timm's weights of this name
        head: Any = DEFAULT_HEAD, # 'lda', 'ridge', 'logistic', 'proto', 'cosine', or another method or adaptation of features
        *,
        pool: TokenPool | None = 'auto', # Features: 'auto' (as in its training), 'cls', 'mean', 'both'; None: maps
        size: Size | None = None, # Of the images; None: what the weights were trained on
        remap: bool = False, # Are the tensors of the checkpoint in timm's order under other names?
        reject: float | None = None, # Below this probability an image is none of the classes; None: never
        adapt: Any = None, # An inductive adaptation to the examples, or its name
        keep: float | None = None, # Share of images of the classes to answer: what is stranger is none of them; None: all
    ) -> FewShotClassifier:
        """A classifier on a pretrained backbone as it is: a few examples of each class are enough, nothing is trained.

        Size, cut, interpolation and statistics of the images are those of the weights. Warns of a backbone without pretrained
        weights. Raises `ValueError` for an unknown backbone or head (nearest names offered), for weights of another backbone, and
        for a head that would have to be trained; `ConnectionError`, at once, where timm's weights are out of reach.
        """
        return cls(*backbone_model(arch, weights, head, pool, size, remap), reject, adapt, keep)

    @classmethod
    def from_learner(cls,
        learn: FSCLearner, # Trained
        preprocess: Preprocess | None = None, # None: the validation transforms of its loaders
        reject: float | None = None, # Below this probability an image is none of the classes; None: never
        adapt: Any = None, # An inductive adaptation to the examples, or its name
        keep: float | None = None, # Share of images of the classes to answer: what is stranger is none of them; None: all
    ) -> FewShotClassifier:
        """The model of a learner as it is now, without examples. With `adapt` the model is adapted to every new set of examples.

        An encoder that was adapted is saved as it came out; loaded again it is no more adapted to examples that join. Raises
        `ValueError` for transforms that a bundle cannot hold, and for a transductive adaptation.
        """
        learn.warn_untrained()
        return cls(learn.model, preprocess or Preprocess.from_dls(learn.dls), reject, adapt, keep)

    @classmethod
    def from_pretrained(cls,
        folder: str | PathLike, # Folder of a saved classifier, or `hf://owner/name` of one on the Hugging Face Hub
        arch: nn.Module | None = None, # The backbone, where it was a module of your own
        method: type[FewShotModel] | None = None, # The method, where it was a class of your own that is not registered
        **kwargs, # With `hf://`, for `huggingface_hub.snapshot_download`, such as `revision` and `token`
    ) -> FewShotClassifier:
        """A saved classifier. Nothing in the folder is executed, and no network is used except for `hf://owner/name`.

        Raises `FileNotFoundError` where there is none, and `BundleError` for one that is corrupt or not what it says.
        """
        bundle = Bundle.read(local_folder(folder, **kwargs), arch, method)
        classifier = cls(bundle.model, bundle.preprocess, bundle.reject, keep=bundle.keep)
        classifier._temperature, classifier.calibrated_ = bundle.temperature, bundle.calibrated
        return classifier if bundle.support is None else classifier._take(bundle.support, calibrate=False)

    def save(self,
        folder: str | PathLike, # Made if it is not there; an older classifier in it is replaced, at once or not at all
        thumbnails: bool = False, # Small pictures of the examples as well?
        card: ModelCard | None = None, # What README.md says of training, accuracies and licences
        half: bool = False, # Matrices with 16 bits a number: half the size, answers that differ in the third digit
    ) -> Path:
        """Write the model and the examples (as features) as JSON and safetensors, for `from_pretrained`; a README.md for people.

        A README.md that no save wrote stays, with a warning. Raises `BundleError` for what could not be loaded again, and for a
        model that gives no finite scores; an older classifier in the folder then stays.
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
        thumbnails: bool = False, # Small pictures of the examples as well?
        card: ModelCard | None = None, # What README.md says of training, accuracies and licences
        **kwargs, # For `HfApi.create_repo`, such as `private` and `token`
    ) -> str:
        "Save to the Hugging Face Hub, where a README.md that no save wrote stays; returns the address of the commit"
        with TemporaryDirectory() as folder: return upload(self.save(folder, thumbnails, card), repo_id, **kwargs)

    @property
    def model(self) -> FewShotModel:
        "The few-shot model that it asks, a copy of the trained one"
        return self.head.model

    @property
    def _tuned(self) -> bool:
        "Is the encoder adapted anew to every set of examples?"
        return self.adapt is not None and self.adapt.on_images

    def get_params(self,
        deep: bool = True, # Changes nothing: no parameter is an estimator
    ) -> dict[str, Any]:
        "The arguments that a classifier like this one is made of, by name; examples and temperature are none of them"
        model = self.model if self._trained is None else self._trained
        return dict(model=model, preprocess=self.preprocess, reject=self.reject, adapt=self.adapt, keep=self.keep)

    @property
    def temperature(self) -> float:
        "Scores are divided by it before they become probabilities. One that is set by hand stays, whatever the examples say"
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None: self._temperature, self.calibrated_ = value, 'by hand'

    @property
    def limit(self) -> float | None:
        "The strangeness beyond which an image is none of the classes, by `keep`; None where there is no such limit"
        return None if self.keep is None or self._known is None else self._known.limit(self.keep)

    @property
    def device(self) -> torch.device:
        "Where it computes"
        return next((p.device for p in self.model.parameters()), torch.device('cpu'))

    def to(self, device: torch.device | str) -> FewShotClassifier:
        "Move model and examples to a device"
        self.head.to(device)
        return self if self._support is None else self._take(self._support.to(device), calibrate=False)

    @property
    def fitted(self) -> bool:
        "Are there examples of enough classes?"
        return self._support is not None and self.head.problem(len(self._support.classes)) is None

    @property
    def support(self) -> Support:
        "The examples. Raises `NotFittedError` where there are none"
        if self._support is None: raise NotFittedError('This classifier has no examples yet: call fit(images, labels) first')
        return self._support

    def thumbnails(self, label: Label) -> list[Image.Image]:
        "Small pictures of the examples of a class; none where the classifier was saved without"
        if self.support.thumbnails is None: return []
        chosen = [t for t, o in zip(self.support.thumbnails, self.support.labels) if o == label]
        return [Image.fromarray(t.permute(1, 2, 0).numpy()) for t in chosen]

    @property
    def classes_(self) -> np.ndarray:
        "The classes, sorted: the columns of `predict_proba`"
        return np.array(self.support.classes)

    @property
    def shots_(self) -> dict[Label, int]:
        "Examples of each class; empty before there are any"
        return dict(sorted(Counter(self.support.labels).items())) if self._support else {}

    def __repr__(self) -> str:
        known = f'{len(self.classes_)} classes' if self._support else 'no examples'
        return f'{type(self).__name__}({type(self.model).__name__}, {size_text(self.preprocess.size)}, {known})'

    def fit(self,
        items: Any, # Images, or a folder with a folder of images per class
        labels: Sequence[Any] | None = None, # The label of each image, text or whole numbers; None: the names of the folders
    ) -> FewShotClassifier:
        """Learn the classes by these examples, in the place of any before; classes may have unequal numbers of them.

        Raises `ValueError` for fewer than two classes, for a number of classes that the method cannot do (a graph network does
        that of its training only), and for images and labels that do not match; `OSError` names a broken file.
        """
        return self._take(self._examples(items, labels), strict=True)

    def fit_pixels(self,
        pixels: Tensor, # Bytes `(n_support, channels, height, width)`, as `preprocess.pixels` gives them
        labels: Sequence[Label], # The label of each image
    ) -> FewShotClassifier:
        "`fit` on images that are preprocessed already"
        return self._take(self._support_of(pixels.split(BATCH), tuple(labels)), strict=True)

    def add_class(self,
        items: Any, # Images
        label: Label, # Their class, a new one or one to add examples to
    ) -> FewShotClassifier:
        """Learn one more class, or more examples of one. Starting from none, answers come as soon as there are enough classes.

        Raises `ValueError` where the method cannot do so many; the classifier then stays as it was.
        """
        items = as_items(items)
        return self._join(self._examples(items, [label] * len(items)))

    def add_pixels(self,
        pixels: Tensor, # Bytes `(n, 3, size, size)`, as `preprocess.pixels` gives them
        label: Label, # Their class, a new one or one to add examples to
    ) -> FewShotClassifier:
        "`add_class` on images that are preprocessed already"
        return self._join(self._support_of(pixels.split(BATCH), (label,) * len(pixels)))

    def correct(self,
        item: Any, # An image that was answered
        label: Label, # What it shows, a class that is known or a new one
    ) -> FewShotClassifier:
        "The right answer for an image, which joins the examples. Raises as `add_class` does, and `TypeError` for several images"
        if not is_single(item): raise TypeError(f'correct takes one image, found a {type(item).__name__}: see add_class')
        return self.add_class([item], label)

    def remove_class(self,
        label: Label, # One of `classes_`
    ) -> FewShotClassifier:
        "Forget a class. Raises `ValueError` for an unknown class, and where too few would be left"
        label = composed(label)
        if label not in self.support.labels:
            raise ValueError(f'no class {label!r}: there are {", ".join(map(str, self.classes_))}')
        return self._take(self.support.without(label))

    @overload
    def predict(self, item: str | bytes | PathLike | Image.Image) -> Prediction: ...
    @overload
    def predict(self, item: list | tuple) -> np.ndarray: ...
    @overload
    def predict(self, item: Any) -> Any: ...

    def predict(self,
        item: Any, # File, bytes, PIL image, array or tensor; or several
    ) -> Any:
        """The answer for one image, a `Prediction`; of several the labels `(n,)`, as in scikit-learn, None where rejected.

        Raises `NotFittedError` before `fit`.
        """
        if is_single(item): return self.predict_batch([item])[0]
        labels = [answer.label for answer in self.predict_batch(item)]
        return np.array(labels, object if None in labels else self.classes_.dtype)

    def predict_batch(self,
        items: Any, # Images, as a sequence or an array `(n, ...)`
    ) -> list[Prediction]:
        "The answers for many images, in their order"
        classes, limit = self.support.classes, self.limit
        scores, strangeness = self._asked(items)
        return [answered(dict(zip(classes, row)), strange, self.reject, limit)
                for row, strange in zip(self._probabilities(scores).tolist(), strangeness.tolist(), strict=True)]

    def predict_proba(self,
        items: Any, # As in `predict_batch`
    ) -> np.ndarray:
        "Probabilities `(n, n_way)` of the classes `classes_`"
        return self._probabilities(self.scores(items)).numpy()

    def score(self,
        items: Any, # Images, or a folder with a folder of images per class
        labels: Sequence[Any] | None = None, # The label of each image; None: the names of the folders
    ) -> float:
        "The share of images whose likeliest class is their label"
        items, labels = labelled_items(items, labels)
        likeliest = self.predict_proba(items).argmax(1)
        return float(np.mean([self.support.classes[i] == o for i, o in zip(likeliest, labels)]))

    def scores(self,
        items: Any, # As in `predict_batch`
    ) -> Tensor:
        "The method's scores `(n, n_way)` on the CPU, before they become probabilities. Raises `ValueError` where not finite"
        return self._asked(items)[0]

    def strangeness(self,
        items: Any, # As in `predict_batch`
    ) -> np.ndarray:
        "The distance `(n,)` of each image from the nearest class mean, of features at unit length: what `keep` limits"
        return self._asked(items)[1].numpy()

    def features_of(self,
        items: Any, # As in `predict_batch`
    ) -> Iterator[Tensor]:
        "Features of images, in batches, as the head and the examples have them. Raises as `predict` does"
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
    def encode(self,
        pixels: Tensor, # Bytes `(n, channels, height, width)`, as `preprocess.pixels` gives them
    ) -> Tensor:
        "Feature maps `(n, C, H, W)`"
        encode = lambda part: self.model.encode(self.preprocess.normalise(part.to(self.device)))
        if self.device.type != 'cpu' or len(pixels) < 2: return encode(pixels)
        if self._at_once is None:  # more would not be faster, only take more memory
            with largest_output(self.model.encoder) as found: encode(pixels[:1])
            self._at_once = max(1, AT_ONCE // found[0])
        return torch.cat([encode(part) for part in pixels.split(self._at_once)])

    @torch.no_grad()
    def _check_finite(self, what: str) -> None:
        "`ValueError` for weights, or scores of an example, that are not finite"
        check_weights(self.model, what)
        if self.fitted: finite_scores(self.head(self.support.features[:1]), 'an example')

    def _examples(self, items: Any, labels: Sequence[Any] | None) -> Support:
        "Images and labels as a support set"
        items, named = labelled_items(items, labels)
        return self._support_of(self.preprocess.batches(items, BATCH), named)

    def _support_of(self, batches: Iterable[Tensor], labels: tuple[Label, ...]) -> Support:
        "Batches of bytes and the labels of all as a support set"
        features, thumbnails, kept = [], [], []
        for pixels in batches:
            if self._tuned: kept.append(pixels)
            features.append(self.head.compact(self.encode(pixels)))
            thumbnails.append(thumbnails_of(pixels))
        return Support(torch.cat(features), labels, torch.cat(thumbnails), torch.cat(kept) if kept else None)

    def _join(self, new: Support) -> FewShotClassifier:
        return self._take(new if self._support is None else self._support.joined(new))

    def _take(self, support: Support, strict: bool = False, calibrate: bool = True) -> FewShotClassifier:
        "Take over a support set; one that the method cannot do only if it is on the way there, and not `strict`"
        if self._tuned and len(support.classes) > 1: return self._take_adapted(cast(FewShotModel, self._trained), support)
        problem = self.head.problem(len(support.classes))
        if problem and (strict or self.fitted): raise ValueError(problem)
        if not problem: self.head.fit(support.features, support.member)
        self._support = support
        if not problem: self._check_itself(calibrate)
        return self

    @torch.no_grad()
    def _check_itself(self, calibrate: bool = True) -> None:
        "What the examples tell of answers: where the classes are, and the temperature, unless something else calibrated it"
        features, member = self.support.features, self.support.member
        # where the encoder was adapted to these very examples, none of them is held out
        self._known = Known.of(features, member, alone=self._tuned)
        if not calibrate or self.calibrated_ not in (None, 'examples'): return
        try: self._temperature, self.calibrated_ = temperature_of(self.held_out(), features, member), 'examples'
        except ValueError as e:
            self._temperature, self.calibrated_ = 1., None
            if not self._warned:
                refuses = ', and keep= refuses nothing' if self.keep is not None and self.limit is None else ''
                warnings.warn(f'probabilities are not calibrated{refuses}: of the examples none can be held out ({str(e):.300}). '
                              'Bring more of each class, or call calibrate(images of other classes)', stacklevel=4)
            self._warned = True

    def held_out(self) -> Iterator[HeldOut]:
        "Heads that have not seen a fold of the examples. Raises `ValueError` with the reason where none can be held out"
        if self._tuned: raise ValueError('the encoder was adapted to all of them')
        return without_folds(self.head, self.support.features, self.support.member)

    def _take_adapted(self, trained: FewShotModel, support: Support) -> FewShotClassifier:
        "Adapt the trained model to the examples, encode them anew and take them over; after an error all is as before"
        before, pixels = self.head, cast(Tensor, support.pixels)
        adapted = self.adapt(trained.to(self.device), self.preprocess.normalise(pixels.to(self.device)),
                                               support.member.argmax(1).to(self.device))
        try:
            self.head = adapted.head(statistics='support')
            with torch.no_grad(): features = torch.cat([self.head.compact(self.encode(part)) for part in pixels.split(BATCH)])
            new = replace(support, features=features)
            if problem := self.head.problem(len(new.classes)): raise ValueError(problem)
            self.head.fit(new.features, new.member)
        except BaseException:
            self.head = before
            raise
        self._support = new
        self._check_itself()
        return self
