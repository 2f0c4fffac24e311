"The first stage of the field: train the encoder by plain classification of the base classes"
from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from fastai.callback import progress, schedule  # noqa: F401  these add `no_bar` and `fit_one_cycle` to Learner
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from torch import Tensor, nn

from ..data.loaders import EpisodeDataLoaders
from ..encode.encoder import Encoder
from .fused_adam import default_optimizer
from .progress import plain_rows

__all__ = ['ImageClassifier', 'classification_learner', 'pretrain_encoder']


class ImageClassifier(nn.Module):
    "An encoder with global average pooling and one linear layer: images to the scores of every base class"
    def __init__(self,
        encoder: Encoder, # Images to feature maps
        n_classes: int, # Classes of the training domain
    ):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(encoder.num_features, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        "Images `(n, 3, height, width)` to scores `(n, n_classes)`"
        return self.head(self.encoder(x))


def classification_learner(
    dls: EpisodeDataLoaders, # Episodes whose training classes are to be told apart
    encoder: Encoder, # From `create_encoder`, or the encoder of a few-shot model
    bs: int = 64, # Images per step
    valid_pct: float = 0.1, # Share of each class's images that are held out for the accuracy
    **kwargs, # For fastai's `Learner`
) -> Learner:
    "A fastai `Learner` that classifies single images of the training classes; its `model.encoder` is `encoder`"
    train, valid = dls.train.image_split(bs=bs, valid_pct=valid_pct)
    image_dls = DataLoaders(train, valid, path=dls.path, device=dls.device)
    settings = dict(loss_func=CrossEntropyLossFlat(), metrics=accuracy, opt_func=default_optimizer(dls.device)) | kwargs
    return Learner(image_dls, ImageClassifier(encoder, dls.n_classes).to(dls.device), **settings)


def pretrain_encoder(
    dls: EpisodeDataLoaders, # Episodes whose training classes are to be told apart
    encoder: Encoder, # From `create_encoder`, or the encoder of a few-shot model; trained in place
    epochs: int = 20, # Passes over the training images
    lr: float = 3e-3, # Peak learning rate of the one-cycle schedule
    cbs: Any = None, # Callbacks of the pre-training
    show_bar: bool = True, # Show fastai's progress bar and table
    **kwargs, # For `classification_learner`
) -> Encoder:
    "Train `encoder` to classify the training classes and return it; the first stage of Chen et al. 2019 and Tseng et al. 2020"
    learn = classification_learner(dls, encoder, **kwargs)
    with nullcontext() if show_bar else plain_rows(learn): learn.fit_one_cycle(epochs, lr, cbs=cbs)
    return encoder
