"A few-shot model whose classifier is a method on features that is fitted to each support anew"
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor

from ..encode.encoder import Encoder
from ..methods.base import FewShotModel, Processed, one_hot
from ..methods.head import Head, head_for
from ..methods.registry import register_method
from ..tensors import Pool, pool_vectors, single
from .base import get_adaptation

__all__ = ['FeatureNet', 'FeatureHead', 'Classifiable']

OF_ENCODER = 'arch', 'img_size', 'in_chans', 'encoder_kwargs'


@dataclass
class Classifiable(Processed):
    "Treated features of the queries, and the classifier fitted to the support"
    features: Tensor # `(n_query, d)`
    fitted: Any # A `Fitted`


@register_method('features')
class FeatureNet(FewShotModel):
    """An encoder and a method on features: `process` fits the method to the support, `classify` scores with it.

        PA(steps=20)(learn.model)                                           # the result of an adaptation
        create_fsc_model('features', 'resnet10', adaptation='ridge')        # by name

    Maps are pooled to vectors. Settings that are tensors are buffers, so they move and are saved with the model.
    """
    def __init__(self,
        encoder: Encoder, # Images to feature maps, with `out_shape`
        n_way: int = 5, # Ignored: this method classifies any number of classes
        n_classes: int = 0, # Ignored: this method has no global classifier
        adaptation: Any = 'simple_shot', # A method on features, or its name
        settings: Mapping[str, Any] | None = None, # Arguments of the named method, as plain values
        shapes: Mapping[str, Sequence[int]] | None = None, # Shapes of its arguments that are tensors, which are loaded later
        pool: Pool = 'avg', # How maps become vectors: 'avg' or 'flatten'
    ):
        super().__init__(encoder, n_way, n_classes)
        if isinstance(adaptation, str):
            tensors = {k: torch.zeros(*shape) for k, shape in (shapes or {}).items()}
            adaptation = get_adaptation(adaptation, **{**(settings or {}), **tensors})
        if adaptation.on_images: raise ValueError(f'FeatureNet takes a method on features, {adaptation.name} adapts the encoder')
        self.pool, self.adaptation = pool, adaptation
        self.tensors = [f.name for f in fields(adaptation) if isinstance(getattr(adaptation, f.name), Tensor)]
        for name in self.tensors: self.register_buffer(f'setting_{name}', getattr(adaptation, name))

    @classmethod
    def around(cls,
        model: FewShotModel, # A model whose encoder is shared
        adaptation: Any, # A method on features
    ) -> FeatureNet:
        "A `FeatureNet` with the encoder of a model; it has a `config` if the model has one and settings can be saved"
        net = cls(cast(Encoder, model.encoder), model.n_way, adaptation=adaptation).train(model.training)
        of_encoder: dict[str, Any] = getattr(model, 'config', {})
        plain = {f.name: value for f in fields(adaptation) if (value := getattr(adaptation, f.name)) is not None
                 and f.name not in net.tensors and value != f.default}
        shapes = {name: list(getattr(adaptation, name).shape) for name in net.tensors}
        try: settings = json.loads(json.dumps(plain))
        except TypeError: return net
        if of_encoder:
            net.config = {'method': cls.__name__, **{k: of_encoder[k] for k in OF_ENCODER}, 'n_way': net.n_way,
                          'adaptation': adaptation.name, 'settings': settings, 'shapes': shapes}
        return net

    @property
    def method(self) -> Any:
        "The method on features, with its tensors on the device of the model"
        return replace(self.adaptation, **{name: getattr(self, f'setting_{name}') for name in self.tensors})

    @property
    def no_graph(self) -> str: # type: ignore[override]
        "The reason why the method cannot be exported, or an empty text"
        method = self.adaptation
        return '' if method.has_graph or method.linear and method.treats_alone else (
            f'{type(method).__name__} learns from its examples by steps that no graph can hold: save a bundle, or use '
            'SimpleShot, SupportCentred or TipAdapter, or one on images, such as FineTune, whose result is a plain model')

    def vectors(self, f: Tensor) -> Tensor:
        "Pooled maps `(n, d)`, in single precision at least"
        return single(pool_vectors(f, self.pool))

    def fit(self, f_support: Tensor, support_y: Tensor, f_query: Tensor | None = None) -> Any:
        "The `Fitted` classifier for maps or vectors of a support"
        x = self.vectors(f_support)
        return self.method.fit(x, one_hot(support_y, x.dtype), None if f_query is None else self.vectors(f_query))

    def process(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Classifiable:
        "Fit the method to the support, and treat the queries as it asks"
        fitted = self.fit(f_support, support_y, f_query)
        return Classifiable(fitted.treat(self.vectors(f_query)), fitted)

    def classify(self, f_p: Classifiable) -> Tensor:
        "Scores `(n_query, n_way)`"
        return f_p.fitted.score(f_p.features)

    def forward_episodes(self,
        f_support: Tensor, # Maps or vectors `(n_episodes, n_support, ...)`
        support_y: Tensor, # Labels `(n_support,)`, the same for every episode
        f_query: Tensor, # Maps or vectors `(n_episodes, n_query, ...)`
    ) -> Tensor:
        "Scores `(n_episodes, n_query, n_way)` of independent episodes"
        support, query = (self.vectors(f.flatten(0, 1)).unflatten(0, f.shape[:2]) for f in (f_support, f_query))
        return self.method.answer(support, one_hot(support_y, support.dtype), query)


@head_for(FeatureNet)
class FeatureHead(Head):
    "The head of a `FeatureNet`, which keeps vectors"
    def compact(self, f: Tensor) -> Tensor:
        "Pooled vectors `(n, d)`"
        return self.model.vectors(f)
