"Drawing an episode as a person would"
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

if TYPE_CHECKING: from .episode import Episode

__all__ = ['show_episode']

RIGHT, WRONG = '#2a9d3a', '#d1342f'


def _strip(images: Tensor, colors: Sequence[str] | None = None, pad: int = 2, edge: int = 2) -> np.ndarray:
    "Images `(n, C, H, W)` side by side as `(H, W·n, 3)` floats, framed in `colors`"
    a = images.float().clamp(0, 255).numpy().transpose(0, 2, 3, 1) / 255
    n, h, w, _ = a.shape
    strip = np.ones((h + 2*edge, n * (w + 2*edge + pad) - pad, 3))
    for i, image in enumerate(a):
        left = i * (w + 2*edge + pad)
        if colors is not None: strip[:, left:left + w + 2*edge] = plt.matplotlib.colors.to_rgb(colors[i])
        strip[edge:-edge, left + edge:left + edge + w] = image
    return strip


def _grid(n_rows: int, n_support: int, n_query: int, figsize, title: str | None) -> tuple[Figure, np.ndarray]:
    width = min(13., 1.2 + .8 * (n_support + n_query))
    cell = (width - 1.2) / (n_support + n_query)
    fig, axes = plt.subplots(n_rows, 2, figsize=figsize or (width, .5 + (cell + .12) * n_rows), squeeze=False,
                             width_ratios=(n_support, n_query), layout='constrained')
    if title: fig.suptitle(title, weight='bold')
    return fig, axes


def show_episode(
    episode: Episode, # With images from 0 to 255, as `EpisodicDL.decode` gives them
    ctx=None, # Not used: an episode needs a figure of its own
    vocab: Sequence | None = None, # Names of the classes
    preds: Tensor | None = None, # Predicted labels of the queries; right ones are framed green, wrong ones red
    max_n: int = 9, # At most so many support images and so many queries a class
    figsize: tuple[float, float] | None = None, # In inches; None: fits a notebook
    title: str | None = None, # Above the figure
    **kwargs, # Left to other types' `show`
) -> Figure:
    "Draw each class in a row: its name, its support images, and beside them its queries"
    support_y, query_y = episode.support_y.cpu(), episode.query_y.cpu()
    names = [str(c if vocab is None else vocab[c]) for c in episode.classes]
    shown = [min(max_n, int((y == 0).sum())) for y in (support_y, query_y)]
    fig, axes = _grid(episode.n_way, *shown, figsize, title)
    for label, (left, right) in enumerate(axes):
        queries = (query_y == label).nonzero().flatten()[:max_n]
        colors = None if preds is None else [RIGHT if int(preds[i]) == label else WRONG for i in queries]
        left.imshow(_strip(episode.support_x[(support_y == label).nonzero().flatten()[:max_n]]))
        right.imshow(_strip(episode.query_x[queries], colors))
        left.set_ylabel(names[label], rotation=0, ha='right', va='center')
        if colors and WRONG in colors:
            taken = [names[int(preds[i])] if int(preds[i]) != label else '' for i in queries]
            centres = (np.arange(len(queries)) + .5) * right.get_xlim()[1] / len(queries)
            right.set_xticks(centres, taken, fontsize=7, color=WRONG)
        for ax in (left, right):
            ax.tick_params(length=0)
            ax.set(yticks=[], **({} if ax.get_xticklabels() and ax is right and colors and WRONG in colors else {'xticks': []}))
            ax.spines[:].set_visible(False)
    axes[0, 0].set_title('support')
    axes[0, 1].set_title('queries')
    return fig
