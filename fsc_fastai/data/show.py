"Drawing an episode as a person would"
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from ..drawing import no_math

if TYPE_CHECKING:
    from .episode import Episode

__all__ = ['show_episode']

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


def show_episode(
    episode: Episode, # With images from 0 to 255, as `EpisodicDL.decode` gives them
    ctx: Any = None, # Not used: an episode needs a figure of its own
    vocab: Sequence | None = None, # Names of the classes
    preds: Tensor | None = None, # Predicted labels of the queries; right ones are framed green, wrong ones red
    max_n: int = 9, # At most so many support images and so many queries a class
    figsize: tuple[float, float] | None = None, # In inches; None: fits a notebook
    title: str | None = None, # Above the figure
    **kwargs, # Left to other types' `show`
) -> Figure:
    "Draw each class in a row: its name, its support images, and beside them its queries"
    labels = [(o.as_subclass(Tensor).cpu()) for o in (episode.support_y, episode.query_y)]
    names = [str(c if vocab is None else vocab[c]) for c in episode.classes]
    n_support, n_query = (min(max_n, int(o.bincount().max())) for o in labels)
    fig, axes = _grid(episode.n_way, n_support, n_query, figsize, title)
    for label, (left, right) in enumerate(axes):
        support, queries = ((o == label).nonzero().flatten()[:max_n] for o in labels)
        left.imshow(_strip(episode.support_x[support]))
        left.set_ylabel(no_math(names[label]), rotation=0, ha='right', va='center')
        taken = [] if preds is None else preds[queries].tolist()
        right.imshow(_strip(episode.query_x[queries], [RIGHT if o == label else WRONG for o in taken]))
        _name_wrong(right, ['' if o == label else names[o] for o in taken])
    axes[0, 0].set_title('support')
    axes[0, 1].set_title('queries')
    return fig
