"Episodes: their types, their figures, and the transform that makes an episode from a flat batch"
# No `from __future__ import annotations`: fastai dispatches on the annotations of `encodes` and `decodes`.
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from fastai.data.core import show_batch, show_results
from fastai.torch_core import TensorCategory
from fastcore.basics import fastuple
from fasttransform.transform import ItemTransform
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from plum import dispatch
from torch import Tensor, cat

from ..drawing import no_math

__all__ = ['Episode', 'EpisodeLabel', 'EpisodeSplit']


RIGHT, WRONG = '#2a9d3a', '#d1342f'


def _strip(images: Tensor, colors: Sequence[str] = (), pad: int = 2, edge: int = 3) -> np.ndarray:
    "Images `(n, C, H, W)` side by side as `(H, W·n, 3)` floats, framed in `colors`"
    a = images.float().clamp(0, 255).numpy().transpose(0, 2, 3, 1) / 255
    n, h, w, _ = a.shape
    strip = np.ones((h + 2*edge, n * (w + 2*edge + pad) - pad, 3))
    for i, image in enumerate(a):
        left = i * (w + 2*edge + pad)
        if colors: strip[:, left:left + w + 2*edge] = to_rgb(colors[i])
        strip[edge:-edge, left + edge:left + edge + w] = image
    return strip


def _grid(n_rows: int, n_support: int, n_query: int, figsize: tuple[float, float] | None,
          title: str | None) -> tuple[Figure, np.ndarray]:
    "A figure with two columns of axes, as wide as their images"
    width = min(13., 1.2 + .8 * (n_support + n_query))
    cell = (width - 1.2) / (n_support + n_query)
    fig, axes = plt.subplots(n_rows, 2, figsize=figsize or (width, .5 + (cell + .12) * n_rows), squeeze=False,
                             width_ratios=(n_support, n_query), layout='constrained')
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    if title: fig.suptitle(no_math(title), weight='bold')
    return fig, axes


def _name_wrong(ax: Axes, names: list[str]) -> None:
    "Write below each image of a strip the name that it was wrongly given"
    if not any(names): return
    short = [no_math(o if len(o) <= 10 else o[:9] + '…') for o in names]
    ax.set_xticks((np.arange(len(names)) + .5) * ax.get_xlim()[1] / len(names), short, fontsize=7, color=WRONG)


class EpisodeLabel(TensorCategory):
    """Labels 0…n_way−1 within an episode; `classes[label]` is the class in the vocabulary of the dataset.

    `classes` is kept when labels are sliced, copied, moved to a device or sent between processes.
    """
    classes: tuple[int, ...]

    def clone(self, **kwargs) -> 'EpisodeLabel':
        "A copy with the same `classes`"
        res = super().clone(**kwargs)
        res.__dict__.update(self.__dict__)
        return res


class Episode(fastuple):
    "One episode `(support_x, support_y, query_x, query_y)` as model and loss take it, with images sorted by class"
    _fields = ('support_x', 'support_y', 'query_x', 'query_y')  # a leaf for fastai's transforms, not a tuple to map over

    @classmethod
    def from_flat(cls,
        x: Tensor, # Images `(n_support + n_query, channels, height, width)`, support first
        y: EpisodeLabel, # Their labels within the episode, with `classes` and `n_support`
    ) -> 'Episode':
        "Split a batch of images and labels; the first `y.n_support` are the support"
        n, labels = y.n_support, y.as_subclass(Tensor)
        return cls(x[:n], EpisodeLabel(labels[:n], classes=y.classes), x[n:], EpisodeLabel(labels[n:], classes=y.classes))

    def flat(self) -> tuple[Tensor, EpisodeLabel]:
        "One batch of images and labels, support first: the inverse of `from_flat`"
        labels = [o.as_subclass(Tensor).to(self.support_y.device) for o in (self.support_y, self.query_y)]
        return (cat([self.support_x, self.query_x]),
                EpisodeLabel(cat(labels), classes=self.classes, n_support=self.support_x.shape[0]))

    support_x = property(itemgetter(0), doc='Support images `(n_support, channels, height, width)`, class by class')
    support_y = property(itemgetter(1), doc='Their labels within the episode `(n_support,)`')
    query_x = property(itemgetter(2), doc='Query images `(n_query, channels, height, width)`, class by class')
    query_y = property(itemgetter(3), doc='Their labels within the episode `(n_query,)`')

    @property
    def classes(self) -> tuple[int, ...]:
        "The episode's classes in the vocabulary of its dataset, in the order of the labels"
        return self.support_y.classes

    @property
    def n_way(self) -> int:
        "Number of classes"
        return len(self.classes)

    @property
    def n_shot(self) -> int:
        "Support images per class"
        return self.support_x.shape[0] // self.n_way

    @property
    def n_query(self) -> int:
        "Queries per class"
        return self.query_x.shape[0] // self.n_way

    def show(self,
        ctx: Any = None, # Ignored: an episode has its own figure
        vocab: Sequence | None = None, # Names of the classes
        preds: Tensor | None = None, # Predicted labels of the queries; right ones are framed green, wrong ones red
        max_n: int = 9, # Most support images and most queries to draw per class
        figsize: tuple[float, float] | None = None, # Size in inches; None: fits a notebook
        title: str | None = None, # Title of the figure
        **kwargs, # Ignored
    ) -> Figure:
        """Draw a row for each class, with its name, its support images and its queries.

        Images must have values from 0 to 255, as `EpisodicDL.decode` returns them.
        """
        labels = [o.as_subclass(Tensor).cpu() for o in (self.support_y, self.query_y)]
        names = [str(c if vocab is None else vocab[c]) for c in self.classes]
        n_support, n_query = (min(max_n, int(o.bincount().max())) for o in labels)
        fig, axes = _grid(self.n_way, n_support, n_query, figsize, title)
        for label, (left, right) in enumerate(axes):
            support, queries = ((o == label).nonzero().flatten()[:max_n] for o in labels)
            left.imshow(_strip(self.support_x[support]))
            left.set_ylabel(no_math(names[label]), rotation=0, ha='right', va='center')
            taken = [] if preds is None else preds[queries].tolist()
            right.imshow(_strip(self.query_x[queries], [RIGHT if o == label else WRONG for o in taken]))
            _name_wrong(right, ['' if o == label else names[o] for o in taken])
        axes[0, 0].set_title('support')
        axes[0, 1].set_title('queries')
        return fig


class EpisodeSplit(ItemTransform):
    """The last batch transform, which splits a flat batch `(x, y)`, support first, into an `Episode`.

    Before it all images are one batch, as fastai's augmentations need. Other batches are returned unchanged.
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
