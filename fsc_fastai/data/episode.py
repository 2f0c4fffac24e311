"The types of an episode, and the transform that makes one of a flat batch"
# No `from __future__ import annotations`: fastai dispatches on the annotations of `encodes` and `decodes`.
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from fastai.data.core import show_batch, show_results
from fastai.torch_core import TensorCategory
from fastcore.basics import fastuple
from fasttransform.transform import ItemTransform
from matplotlib.figure import Figure
from plum import dispatch
from torch import Tensor, cat

from .show import show_episode

__all__ = ['Episode', 'EpisodeLabel', 'EpisodeSplit']


class EpisodeLabel(TensorCategory):
    """Labels 0…n_way−1 within an episode; `classes[label]` is the class in the vocabulary of the dataset.

    `classes` goes along when the labels are sliced, copied, moved to a device or sent between processes.
    """
    classes: tuple[int, ...]

    def clone(self, **kwargs) -> 'EpisodeLabel':
        "A copy with the same `classes`, which fastai's own would drop"
        res = super().clone(**kwargs)
        res.__dict__.update(self.__dict__)
        return res


class Episode(fastuple):
    "One episode as the model and the loss take it: `(support_x, support_y, query_x, query_y)`, both halves class by class"
    _fields = ('support_x', 'support_y', 'query_x', 'query_y')  # a leaf for fastai's transforms, not a tuple to map over

    @classmethod
    def from_flat(cls,
        x: Tensor, # Images `(n_support + n_query, channels, height, width)`, support first
        y: EpisodeLabel, # Their labels within the episode, with `classes` and `n_support`
    ) -> 'Episode':
        "Split one batch of images and labels, of which the first `y.n_support` are the support"
        n, labels = y.n_support, y.as_subclass(Tensor)
        return cls(x[:n], EpisodeLabel(labels[:n], classes=y.classes), x[n:], EpisodeLabel(labels[n:], classes=y.classes))

    def flat(self) -> tuple[Tensor, EpisodeLabel]:
        "The inverse of `from_flat`: one batch of images and labels, support first"
        labels = [o.as_subclass(Tensor).to(self.support_y.device) for o in (self.support_y, self.query_y)]
        return (cat([self.support_x, self.query_x]),
                EpisodeLabel(cat(labels), classes=self.classes, n_support=self.support_x.shape[0]))

    @property
    def support_x(self) -> Tensor:
        "Support images `(n_support, channels, height, width)`, class by class"
        return self[0]

    @property
    def support_y(self) -> EpisodeLabel:
        "Their labels within the episode `(n_support,)`"
        return self[1]

    @property
    def query_x(self) -> Tensor:
        "Query images `(n_query, channels, height, width)`, class by class"
        return self[2]

    @property
    def query_y(self) -> EpisodeLabel:
        "Their labels within the episode `(n_query,)`"
        return self[3]

    @property
    def classes(self) -> tuple[int, ...]:
        "The episode's classes in the vocabulary of its dataset, in the order of the labels"
        return self.support_y.classes

    @property
    def n_way(self) -> int:
        "Classes"
        return len(self.classes)

    @property
    def n_shot(self) -> int:
        "Support images a class"
        return self.support_x.shape[0] // self.n_way

    @property
    def n_query(self) -> int:
        "Queries a class"
        return self.query_x.shape[0] // self.n_way

    def show(self,
        ctx: Any = None, # Not used: an episode needs a figure of its own
        vocab: Sequence | None = None, # Names of the classes
        **kwargs, # For `show_episode`
    ) -> Figure:
        "Draw the support images of each class in a row and the queries beside them; `vocab` names the classes"
        return show_episode(self, ctx=ctx, vocab=vocab, **kwargs)


class EpisodeSplit(ItemTransform):
    """Splits a flat batch of one episode `(x, y)`, support first, into an `Episode`; the last of the batch transforms.

    Until then the images are one batch, as fastai's augmentations need. Any other batch stays as it is.
    """
    order = 1000

    def encodes(self, b: list):
        y = b[-1]
        return Episode.from_flat(b[0], y) if hasattr(y, 'n_support') else b


@dispatch  # type: ignore[no-redef]
def show_batch(x: Episode, y, samples, ctxs=None, max_n=9, **kwargs) -> Figure:  # noqa: F811
    "Draw an episode, at most `max_n` support images and queries a class"
    return x.show(max_n=max_n, **kwargs)


@dispatch  # type: ignore[no-redef]
def show_results(x: Episode, y: Episode, samples, outs, ctxs=None, max_n=9, **kwargs) -> Figure:  # noqa: F811
    "Draw an episode with the predicted labels `y.query_y`: right ones green, wrong ones red"
    return x.show(preds=y.query_y, max_n=max_n, **kwargs)


@dispatch
def tensorboard_log(x: Episode, y: Episode, samples, outs, writer, step) -> None:
    "The figure of `show_results` for fastai's `TensorBoardCallback`"
    writer.add_figure('Sample results', x.show(preds=y.query_y), step)


@dispatch
def wandb_process(x: Episode, y: Episode, samples, outs, preds) -> dict[str, Any]:
    "The figure of `show_results` for fastai's `WandbCallback`"
    from fastai.callback.wandb import wandb  # which asks for this
    figure = x.show(preds=y.query_y)
    try: return {'Prediction_Samples': wandb.Image(figure)}
    finally: plt.close(figure)
