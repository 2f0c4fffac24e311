"`SupportFitter`: what a classifier learns from its examples, and what these tell of the answers to come"
from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from sklearn import exceptions
from torch import Tensor

from ..adapt.base import as_adaptation
from ..data.names import composed
from ..methods import FewShotModel
from ..tensors import largest_output
from .estimator import ImageEstimator
from .held_out import HeldOut, temperature_of, without_folds
from .preprocess import Preprocess
from .strangeness import Known, check_keep
from .support import Label, Support, as_items, is_single, labelled_items, thumbnails_of

__all__ = ['SupportFitter', 'NotFittedError', 'BATCH']

BATCH = 64
AT_ONCE = 64 << 20 # Bytes of the largest tensor within the encoder, on a CPU
_T = TypeVar('_T', bound='SupportFitter')


class NotFittedError(exceptions.NotFittedError):
    "A classifier without examples was asked for an answer"


class SupportFitter(ImageEstimator):
    """The half of a classifier that learns: it encodes examples, fits the head to them and calibrates the answers by them.

    Classes may be added, corrected and removed at any time.
    """
    def __init__(self,
        model: FewShotModel, # Copied: training it later does not change the classifier
        preprocess: Preprocess, # Turns an image into the input of the encoder
        reject: float | None = None, # An image whose largest probability is lower belongs to none of the classes; None: never
        adapt: Any = None, # An inductive adaptation, or its name, that is run on every new set of examples
        keep: float | None = None, # Share of images of the classes to answer; stranger images belong to none. None: answer all
    ):
        for given, cls in ((model, FewShotModel), (preprocess, Preprocess)):
            if not isinstance(given, cls): raise TypeError(f'a {cls.__name__} is needed, found {given!r:.60}')
        check_keep(keep)
        self.preprocess, self.reject, self.keep = preprocess, reject, keep
        self._temperature = 1.
        self.calibrated_: str | None = None # What chose the temperature: 'examples', 'other classes' or 'by hand'
        self._known: Known | None = None # Where the classes are
        self._warned = False # That the examples do not calibrate
        self.adapt = cast(Any, as_adaptation(adapt))
        self._trained: FewShotModel | None = None # The model before any adaptation, if there is an adaptation
        if self.adapt is not None:
            if self.adapt.transductive:
                raise ValueError(f'{self.adapt.name} answers queries together, a classifier answers each by itself: use an '
                                 'inductive adaptation, such as PA or FineTune')
            self._trained = copy.deepcopy(model).eval()
            if not self.adapt.on_images: model = self.adapt(model)
        self.head = model.head(statistics='support')
        self._support: Support | None = None
        self._at_once: int | None = None # Images to encode at once; None: not yet known

    def get_params(self,
        deep: bool = True, # Has no effect, because no parameter is an estimator
    ) -> dict[str, Any]:
        "The arguments of the constructor, by name. Examples and temperature are not among them"
        model = self.model if self._trained is None else self._trained
        return dict(model=model, preprocess=self.preprocess, reject=self.reject, adapt=self.adapt, keep=self.keep)

    @property
    def model(self) -> FewShotModel:
        "The few-shot model, a copy of the one that was given"
        return self.head.model

    @property
    def _tuned(self) -> bool:
        "Is the encoder adapted anew to every set of examples?"
        return self.adapt is not None and self.adapt.on_images

    @property
    def device(self) -> torch.device:
        "The device of the model"
        return next((p.device for p in self.model.parameters()), torch.device('cpu'))

    def to(self: _T, device: torch.device | str) -> _T:
        "Move the model and the examples to a device"
        self.head.to(device)
        return self if self._support is None else self._take(self._support.to(device), calibrate=False)

    # The examples

    def fit(self: _T,
        items: Any, # Images, or a folder with one folder of images per class
        labels: Sequence[Any] | None = None, # The label of each image, text or whole numbers; None: the names of the folders
    ) -> _T:
        """Learn the classes from these examples, which replace any earlier ones. Classes may have different numbers of them.

        Raises `ValueError` for fewer than two classes, for a number of classes that the method cannot handle (a graph network
        handles only that of its training), and for images and labels that do not match; `OSError` names a broken file.
        """
        return self._take(self._examples(items, labels), strict=True)

    def fit_pixels(self: _T,
        pixels: Tensor, # Bytes `(n_support, channels, height, width)`, as `preprocess.pixels` gives them
        labels: Sequence[Label], # The label of each image
    ) -> _T:
        "`fit` for images that are preprocessed already"
        return self._take(self._support_of(pixels.split(BATCH), tuple(labels)), strict=True)

    def add_class(self: _T,
        items: Any, # Images
        label: Label, # Their class, a new one or a known one that gets more examples
    ) -> _T:
        """Learn a new class, or add examples to a known one. A classifier without examples answers once it has enough classes.

        Raises `ValueError` where the method cannot handle so many classes; the classifier then stays as it was.
        """
        items = as_items(items)
        return self._join(self._examples(items, [label] * len(items)))

    def add_pixels(self: _T,
        pixels: Tensor, # Bytes `(n, channels, height, width)`, as `preprocess.pixels` gives them
        label: Label, # Their class, a new one or a known one that gets more examples
    ) -> _T:
        "`add_class` for images that are preprocessed already"
        return self._join(self._support_of(pixels.split(BATCH), (label,) * len(pixels)))

    def correct(self: _T,
        item: Any, # An image that was answered
        label: Label, # Its true class, known or new
    ) -> _T:
        "Add an image with its right answer to the examples. Raises as `add_class` does, and `TypeError` for several images"
        if not is_single(item): raise TypeError(f'correct takes one image, found a {type(item).__name__}: see add_class')
        return self.add_class([item], label)

    def remove_class(self: _T,
        label: Label, # One of `classes_`
    ) -> _T:
        "Forget a class. Raises `ValueError` for an unknown class, and where too few would be left"
        label = composed(label)
        if label not in self.support.labels:
            raise ValueError(f'no class {label!r}: there are {", ".join(map(str, self.classes_))}')
        return self._take(self.support.without(label))

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
        "Small pictures of the examples of a class; an empty list if the classifier was saved without them"
        if self.support.thumbnails is None: return []
        chosen = [t for t, o in zip(self.support.thumbnails, self.support.labels) if o == label]
        return [Image.fromarray(t.permute(1, 2, 0).numpy()) for t in chosen]

    @property
    def classes_(self) -> np.ndarray:
        "The classes, sorted: the columns of `predict_proba`"
        return np.array(self.support.classes)

    @property
    def shots_(self) -> dict[Label, int]:
        "The number of examples of each class; empty without examples"
        return dict(sorted(Counter(self.support.labels).items())) if self._support else {}

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

    def _examples(self, items: Any, labels: Sequence[Any] | None) -> Support:
        "Images and labels as a support set"
        items, named = labelled_items(items, labels)
        return self._support_of(self.preprocess.batches(items, BATCH), named)

    def _support_of(self, batches: Iterable[Tensor], labels: tuple[Label, ...]) -> Support:
        "Batches of bytes, and the labels of all images, as a support set"
        features, thumbnails, kept = [], [], []
        for pixels in batches:
            if self._tuned: kept.append(pixels)
            features.append(self.head.compact(self.encode(pixels)))
            thumbnails.append(thumbnails_of(pixels))
        return Support(torch.cat(features), labels, torch.cat(thumbnails), torch.cat(kept) if kept else None)

    def _join(self: _T, new: Support) -> _T:
        return self._take(new if self._support is None else self._support.joined(new))

    def _take(self: _T, support: Support, strict: bool = False, calibrate: bool = True) -> _T:
        "Take over a support set; unless `strict`, also one of too few classes while there have never been enough"
        if self._tuned and len(support.classes) > 1: return self._take_adapted(cast(FewShotModel, self._trained), support)
        problem = self.head.problem(len(support.classes))
        if problem and (strict or self.fitted): raise ValueError(problem)
        if not problem: self.head.fit(support.features, support.member)
        self._support = support
        if not problem: self._calibrate_by_examples(calibrate)
        return self

    def _take_adapted(self: _T, trained: FewShotModel, support: Support) -> _T:
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
        self._calibrate_by_examples()
        return self

    # What the examples tell of the answers to come

    @property
    def temperature(self) -> float:
        "Scores are divided by it before they become probabilities. A temperature set by hand stays, whatever the examples"
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None: self._temperature, self.calibrated_ = value, 'by hand'

    @property
    def limit(self) -> float | None:
        "The strangeness above which an image belongs to none of the classes, as `keep` asks; None for no limit"
        return None if self.keep is None or self._known is None else self._known.limit(self.keep)

    def held_out(self) -> Iterator[HeldOut]:
        "Heads fitted without one fold of the examples each. Raises `ValueError` with the reason where none can be held out"
        if self._tuned: raise ValueError('the encoder was adapted to all of them')
        return without_folds(self.head, self.support.features, self.support.member)

    @torch.no_grad()
    def _calibrate_by_examples(self, calibrate: bool = True) -> None:
        "Find out where the classes are, and choose the temperature unless something else has chosen it"
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
