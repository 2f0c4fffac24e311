"`fsc_learner`: a fastai Learner for episodes, in three lines"
from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import nn

from ..data.loaders import EpisodeDataLoaders
from ..data.sampler import Count, as_range
from ..encode.encoder import Encoder
from ..encode.transformation import ft_parameters
from ..methods import FewShotModel, RelationNet, create_fsc_model
from ..methods.registry import get_method
from .fused_adam import default_optimizer
from .images import check_images as check_images_of
from .learner import FSCLearner, first_weights, own_weights
from .metrics import EpisodeAccuracy, EpisodeCI95

__all__ = ['FSCLearner', 'fsc_learner', 'encoder_head_splitter']


def encoder_head_splitter(
    model: FewShotModel, # A model with an `encoder`
) -> list[list[nn.Parameter]]:
    """Two parameter groups, the encoder and the rest, so that `freeze` freezes the encoder.

    Feature-wise transformations are in neither group, since they have an optimizer of their own.
    """
    left_out = {id(p) for p in ft_parameters(model)}
    in_encoder = {id(p) for p in model.encoder.parameters()}
    groups: list[list[nn.Parameter]] = [[], []]
    for p in model.parameters():
        if id(p) not in left_out: groups[id(p) not in in_encoder].append(p)
    return [group for group in groups if group]


def _one_way(dls: EpisodeDataLoaders, method: type[FewShotModel] | str) -> Count:
    "Classes of a training episode. Raises `ValueError` where validation has others and the method knows one number only"
    if not get_method(method).any_way and len({as_range('n_way', dl.n_way) for dl in (dls.train, dls.valid)}) > 1:
        raise ValueError(f'{method} classifies episodes of one number of classes, but n_way={dls.train.n_way} in training and '
                         f'{dls.valid.n_way} in validation: give both the same, or use RelationNet or ProtoNet')
    return dls.train.n_way


def fsc_learner(
    dls: EpisodeDataLoaders, # Training and validation episodes; the loaders of a `DataBlock` work, too
    arch: str | nn.Module = 'resnet10', # Backbone: any timm name, one of this library, or an encoder
    method: type[FewShotModel] | str = RelationNet, # The few-shot method, as class or name
    *,
    pretrained: Any = False, # Encoder weights: True for timm's or a module's own, a checkpoint, a state dict, a trained encoder
    loss_func: Callable | None = None, # Takes scores `(n_query, n_way)` and labels `(n_query,)`; None: the loss of the method
    opt_func: Callable | None = None, # Optimizer; None: fastai's `Adam`, on a GPU its fused form `FusedAdam`
    lr: float = 1e-3, # Default learning rate
    cbs: Any = None, # Callbacks, such as `LRPGuidedCallback()`
    metrics: Any = None, # Metrics; None: accuracy and its 95 % interval
    splitter: Callable = encoder_head_splitter, # Splits the model into parameter groups
    method_kwargs: dict | None = None, # Arguments of the method, such as `hidden` of `RelationNet`
    check_images: bool = True, # Refuse images that do not match those of pretrained weights
    **kwargs, # For fastai's `Learner`
) -> FSCLearner:
    """Build a few-shot learner from episodes, a backbone and a method.

        learn = fsc_learner(dls, 'resnet10', RelationNet, cbs=LRPGuidedCallback())
        learn.fine_tune(5)

    Raises `ValueError` for unknown names (and offers the nearest ones) and for settings that contradict the loaders, such as
    another `in_chans` than the images have, or a varying number of classes for a method with a fixed one (GNNNet). Images must
    be normalised as those of the pretrained weights were, which `EpisodeDataLoaders.from_folder(…, arch=…)` does.
    """
    dls = EpisodeDataLoaders.from_dls(dls)
    settings = {'in_chans': dls.n_chans} | (method_kwargs or {})
    if settings['in_chans'] != dls.n_chans:
        raise ValueError(f"in_chans={settings['in_chans']}, but the loaders give images of {dls.n_chans} channels: leave it out")
    weights = pretrained.state_dict() if isinstance(pretrained, nn.Module) else pretrained
    model = create_fsc_model(method, arch, n_way=_one_way(dls, method), n_classes=dls.n_classes, img_size=dls.img_size,
                             pretrained=weights, **settings)
    if isinstance(pretrained, nn.Module): model.encoder.trained_on = getattr(pretrained, 'trained_on', None)  # type: ignore[assignment]
    if check_images: check_images_of(dls, cast(Encoder, model.encoder), of_timm=pretrained is True)
    metrics = [EpisodeAccuracy(), EpisodeCI95()] if metrics is None else metrics
    learn = FSCLearner(dls, model.to(dls.device), loss_func=loss_func or model.default_loss(),
                       opt_func=opt_func or default_optimizer(dls.device), lr=lr, cbs=cbs, metrics=metrics,
                       splitter=splitter, **kwargs)
    learn.encoder_trained = pretrained is not False
    if not learn.encoder_trained: learn.first_encoder = first_weights(cast(Encoder, model.encoder))
    if own_weights(model) or not learn.encoder_trained: learn.first_weights = first_weights(model)
    return learn
