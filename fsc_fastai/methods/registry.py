"Few-shot models by name or from their configuration"
from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..encode.encoder import Encoder, ImageSize, Weights, create_encoder
from ..nearest import unknown
from .base import FewShotModel

__all__ = ['create_fsc_model', 'register_method', 'list_methods', 'get_method']

_methods: dict[str, type[FewShotModel]] = {}


def register_method(
    *names: Any, # Names besides that of the class; `@register_method` without parentheses adds none
) -> Any:
    """Make a method known by name, in upper or lower case: a decorator of its class.

        @register_method('relation', 'rn')
        class RelationNet(FewShotModel): ...
    """
    if names and isinstance(names[0], type): return register_method(*names[1:])(names[0])
    def add(cls: type[FewShotModel]) -> type[FewShotModel]:
        _methods.update({name.lower(): cls for name in (cls.__name__, *names)})
        return cls
    return add


def list_methods() -> list[str]:
    "The names that `create_fsc_model` knows, in lower case"
    return sorted(_methods)


def get_method(method: str | type[FewShotModel]) -> type[FewShotModel]:
    """The class of a method, from its name or the class itself.

    Raises `ValueError` for an unknown name and `TypeError` for anything else.
    """
    if isinstance(method, str):
        if method.lower() in _methods: return _methods[method.lower()]
        raise unknown('method', method, list_methods())
    if isinstance(method, type) and issubclass(method, FewShotModel): return method
    raise TypeError(f'A method is a name or a subclass of FewShotModel, found {method!r}')


def create_fsc_model(
    method: str | type[FewShotModel], # Class or name (`list_methods()`)
    arch: str | nn.Module, # Backbone: a timm name, or a module that maps images to feature maps
    n_way: int | tuple[int, int] = 5, # Classes of a training episode, or (lowest, highest)
    n_classes: int = 0, # Classes of the training domain, for methods with a global classifier
    img_size: ImageSize = 84, # Side of the training images, or (height, width)
    pretrained: Weights = False, # Weights of the encoder: True for timm's, a checkpoint file, or a state dict
    in_chans: int = 3, # Channels of the images
    encoder_kwargs: Mapping[str, Any] | None = None, # Further arguments of `create_encoder`
    **kwargs: Any, # Further arguments of the method
) -> FewShotModel:
    """A few-shot model, which turns the images of an episode into scores `(n_query, n_way)`.

    `create_fsc_model(**model.config)` builds the same model again, without its weights: `config` holds plain values. Raises
    `ValueError` for unknown names (and offers the nearest ones) and for an image size that the backbone cannot encode.

        model = create_fsc_model('relation', 'resnet10', img_size=84)
        scores = model(support_x, support_y, query_x)
    """
    cls = get_method(method)
    if arch is None:
        raise ValueError('This configuration is of a model around a module of your own: pass `arch=` that module')
    encoder = create_encoder(arch, pretrained, img_size, in_chans, **(encoder_kwargs or {}))
    model = cls(encoder, n_way=n_way, n_classes=n_classes, **kwargs)
    model.config = _config(cls, encoder, n_way=model.n_way, n_classes=n_classes, **kwargs)
    return model


def _config(cls: type[FewShotModel], encoder: Encoder, **kwargs: Any) -> dict[str, Any]:
    "The arguments that build a model again, as plain values"
    of_encoder = dict(encoder.config or {'arch': None, 'img_size': encoder.img_size, 'in_chans': encoder.in_chans})
    outer = {k: of_encoder.pop(k) for k in ('arch', 'img_size', 'in_chans')}
    config = {'method': cls.__name__, **outer, 'encoder_kwargs': of_encoder, **kwargs}
    try: return json.loads(json.dumps(config))
    except TypeError as e:
        raise TypeError(f'Arguments of a model must be plain values (numbers, strings, lists), to be saved with it: {e}') from e
