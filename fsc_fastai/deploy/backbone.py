"A few-shot model on a frozen pretrained backbone, which needs no training"
from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from ..adapt import LDAHead, LogisticHead, RidgeHead
from ..adapt.base import as_adaptation, list_adaptations
from ..data.image_config import ImageConfig
from ..data.size import Size
from ..encode.encoder import Encoder, TokenPool, Weights, create_encoder
from ..encode.pretrained import check_name, has_weights, images_of
from ..methods import FewShotModel, ProtoNet, create_fsc_model
from ..methods.registry import get_method, list_methods
from ..nearest import unknown
from .preprocess import Preprocess

__all__ = ['HEADS', 'DEFAULT_HEAD', 'backbone_model']

HEADS: dict[str, Any] = {
    'ridge': RidgeHead(treatment='l2', balanced=True), 'lda': LDAHead(treatment='l2'),
    'logistic': LogisticHead(treatment='l2', balanced=True),
    'proto': (ProtoNet, {}), 'cosine': (ProtoNet, dict(distance='cosine')),
}
"Heads by name; the first three are fitted to features at unit length"
DEFAULT_HEAD = 'ridge' # Chosen on classes of mini-ImageNet's validation, see docs/backbones.md


def backbone_model(
    arch: str | nn.Module, # A timm name, or a module that maps images to feature maps or vectors
    weights: Weights | None = None, # Checkpoint, state dict, or `hf-hub:owner/name`; None: timm's weights of this name
    head: Any = DEFAULT_HEAD, # A name in `HEADS`, or another method or inductive adaptation without weights to train
    pool: TokenPool | None = 'auto', # How tokens become features, see `Encoder`
    size: Size | None = None, # Size of the images; None: the one that the weights were trained on
    remap: bool = False, # Match the tensors of the checkpoint by position
) -> tuple[FewShotModel, Preprocess]:
    """A model on a pretrained backbone, and the preprocessing that its weights were trained with.

    Warns if the backbone has no pretrained weights. Raises `ValueError` for a head that would have to be trained; otherwise
    raises as `create_encoder` does.
    """
    images = _images(arch).at(size)
    pretrained: Weights = False if weights is None else weights
    if weights is None and isinstance(arch, str):
        pretrained = has_weights(arch)
        if not pretrained:
            warnings.warn(f'timm has no pretrained weights for {arch!r}: its features are random, and so are the answers, all '
                          'but. Pass weights=FILE, or name a backbone of timm.list_models(pretrained=True)', stacklevel=4)
    encoder = create_encoder(arch, pretrained, images.size, pool=pool, remap=remap)
    return _with_head(encoder, head).eval(), Preprocess(**images.preprocess)


def _images(arch: str | nn.Module) -> ImageConfig:
    "What the weights of a backbone were trained on; of a module that does not say, images as timm's have them by default"
    if isinstance(arch, str):
        check_name(arch)
        return images_of(arch)
    if isinstance(arch, Encoder): return ImageConfig.of(arch).at(arch.img_size)
    return ImageConfig.of(arch)


def _with_head(encoder: Encoder, head: Any) -> FewShotModel:
    "The few-shot model of a head. Raises `ValueError` for one that has to be trained, or adapts the encoder"
    chosen = HEADS.get(head, head) if isinstance(head, str) else head
    if isinstance(chosen, str) and chosen.partition(':')[0] in list_adaptations(): chosen = as_adaptation(chosen)
    if isinstance(chosen, str) and chosen.lower() not in list_methods():
        raise unknown('head', chosen, dict.fromkeys([*HEADS, *list_adaptations(), *list_methods()]))
    if not isinstance(chosen, str | type | tuple): return _of_adaptation(encoder, chosen)
    method, settings = chosen if isinstance(chosen, tuple) else (get_method(chosen), {})
    model = create_fsc_model(method, encoder, img_size=encoder.img_size, in_chans=encoder.in_chans, **settings)
    if any(not name.startswith('encoder.') for name, _ in model.named_parameters()):
        raise ValueError(f'head={head!r}: {method.__name__} compares by weights of its own, which nobody has trained. Heads that '
                         f'need no training are {", ".join(HEADS)}; to train this one: fsc_learner(dls, arch, {method.__name__})')
    return model


def _of_adaptation(encoder: Encoder, adaptation: Any) -> FewShotModel:
    if adaptation.transductive or adaptation.on_images:
        why = 'answers queries together' if adaptation.transductive else 'changes the encoder: pass it as adapt=, beside a head'
        raise ValueError(f'head={adaptation.name!r} {why}. Heads are {", ".join(HEADS)}, or inductive adaptations of features')
    return adaptation(create_fsc_model(ProtoNet, encoder, img_size=encoder.img_size, in_chans=encoder.in_chans))
