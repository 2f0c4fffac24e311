"Figures of relevance: queries beside the classes that they are compared with (Figures 1 and 4 of Sun et al. 2020)"
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ..drawing import fitted, save_figure
from .overlay import DIVERGING, Original, colour_bar, draw_overlay, to_image

__all__ = ['to_heatmaps', 'to_image', 'plot_heatmaps', 'plot_support_heatmaps']

RIGHT, WRONG = 'tab:green', 'tab:red'
SMOOTH = 1 / 20 # Of the side, σ of the blur over an image: the spread of a patch of 1/6 of the side, for which maps were measured
Originals = tuple[Sequence[Original], Sequence[Original]] # Of support images and queries


def to_heatmaps(
    R: Tensor, # Relevance `(..., channels, height, width)`
    percentile: float = 99.5, # Percentile of |R| at which values are clipped, so that one hot pixel hides nothing
    shared: int = 0, # Number of last leading dimensions, such as the classes, that share a scale
    smooth: float = 0., # σ of a Gaussian blur before clipping, relative to the shorter side; keeps the sum of R
) -> np.ndarray:
    """Heatmaps between −1 and 1 `(..., height, width)`, from the sum over the channels; 0 stays 0.

    Raises `ValueError` for a percentile that is not between 0 and 100, and for a negative blur.

    >>> to_heatmaps(Tensor([[[1., -2.]], [[0., -2.]]]), percentile=100).round(2)
    array([[ 0.25, -1.  ]], dtype=float32)
    """
    if not 0 < percentile <= 100: raise ValueError(f'percentile={percentile}: should be above 0 and at most 100')
    if smooth < 0: raise ValueError(f'smooth={smooth}: should be at least 0')
    heat = R.detach().float().sum(-3).cpu().numpy()
    if smooth: heat = gaussian_filter(heat, (0,) * (heat.ndim - 2) + (smooth * min(heat.shape[-2:]),) * 2)
    axes = tuple(range(-2 - shared, 0))
    top = np.percentile(np.abs(heat), percentile, axis=axes, keepdims=True)
    # so few pixels may be relevant that the percentile is 0
    top = np.where(top > 0, top, np.abs(heat).max(axis=axes, keepdims=True))
    return np.clip(heat / np.where(top > 0, top, 1), -1, 1)


def _draw_attention(
    ax: Axes, # Where to draw
    attention: Tensor, # `(H, W)` of the feature map
    image: np.ndarray, # The image, blended half
) -> None:
    "Draw an attention map, brought to the size of the image"
    size = (image.shape[0], image.shape[1])
    a = F.interpolate(attention.detach().float().cpu()[None, None], size, mode='bilinear', align_corners=False)[0, 0]
    a = (a - a.min()) / (a.max() - a.min()).clamp(min=1e-8)
    ax.imshow(.5 * image + .5 * plt.get_cmap('jet')(a.numpy())[..., :3])


class _Grid:
    "Pictures in rows and columns, under titles that fit, and one colour bar"
    def __init__(self, n_rows: int, n_cols: int, size: float, cmap: str, overlay: bool, contours: bool):
        self.size, self.cmap, self.overlay, self.contours = size, cmap, overlay, contours
        self.fig, self.axes = plt.subplots(n_rows, n_cols, figsize=(size * n_cols + .6, size * 1.22 * n_rows), squeeze=False,
                                           layout='constrained')
        for ax in self.axes.flat: ax.set_axis_off()

    def title(self, ax: Axes, name: str, tail: str = '', bold: bool = False) -> None:
        ax.set_title(fitted(name, .97 * self.size, tail=tail), fontsize=8, fontweight='bold' if bold else 'normal')

    def heatmap(self, ax: Axes, heat: np.ndarray, original: Original) -> None:
        if self.overlay: draw_overlay(ax, heat, original, self.cmap, self.contours)
        else: ax.imshow(heat, cmap=self.cmap, vmin=-1, vmax=1)

    def finish(self, save: str | Path | None, against: str = 'against') -> Figure:
        colour_bar(self.fig, self.cmap, against)
        if save is not None: save_figure(save, self.fig, dpi=200)
        return self.fig


def _names(classes: Sequence[Any] | None, n_way: int) -> list[str]:
    if classes is not None and len(classes) != n_way:
        raise ValueError(f'{len(classes)} class names for {n_way} classes: give one each')
    return [str(c) for c in classes] if classes is not None else [f'class {i}' for i in range(n_way)]


def _originals(images: Sequence[Tensor] | Tensor, originals: Sequence[Original] | None, overlay: bool) -> list[Original]:
    "What is drawn of the images: over themselves as they were, beside their relevance as the model saw them"
    return list(originals) if overlay and originals is not None else [Original.seen(x) for x in images]


def _frame(ax: Axes, colour: str) -> None:
    ax.set_axis_on()
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values(): spine.set(color=colour, linewidth=3)


def plot_heatmaps(
    query_x: Tensor, # Images `(n_query, 3, height, width)`
    R: Tensor, # Their relevance `(n_query, n_way, channels, height, width)`
    scores: Tensor, # `(n_query, n_way)`
    support_x: Tensor | None = None, # Images `(n_support, 3, height, width)`; the first of each class is drawn above its column
    support_y: Tensor | None = None, # Their labels
    query_y: Tensor | None = None, # True labels; the predicted class is framed green if right, red if wrong
    classes: Sequence[Any] | None = None, # Names of the classes
    attention: Tensor | None = None, # `(n_query, n_way, H, W)`, drawn beside each heatmap (Figure 4)
    overlay: bool = True, # Draw smooth heatmaps over the grey image, at its own size; False: as computed, as the paper does
    shared: bool = False, # One scale for the classes of a query, so that they can be compared
    percentile: float = 99.5, # See `to_heatmaps`
    cmap: str = DIVERGING, # Red speaks for the class, blue against it; 'PuOr_r' or 'RdBu_r' for the colour-blind
    size: float = 1.6, # Side of a picture in inches
    *,
    against: int | None = None, # The class that `R` compares all others with, if any; it has no column
    originals: Originals | None = None, # Images before they were cropped and resized, for `overlay`
    contours: bool = True, # Contours of the relevance, with `overlay`
    smooth: float | None = None, # See `to_heatmaps`; None: 1/20 with `overlay`, else 0
    save: str | Path | None = None, # File to write; the ending says the format: svg, pdf, png, …
) -> Figure:
    """A figure with a row per query and a column per class, which show the relevance of the query for that class.

    Titles give the class and its probability, as in Figures 1 and 4 of Sun et al. 2020. Raises `ValueError` for shapes or names
    that do not fit.
    """
    n_query, n_way = scores.shape
    if R.shape[:2] != scores.shape or len(query_x) != n_query:
        raise ValueError(f'{len(query_x)} queries do not fit relevance {tuple(R.shape)} and scores {tuple(scores.shape)}')
    names, heat = _names(classes, n_way), to_heatmaps(R, percentile, int(shared), SMOOTH * overlay if smooth is None else smooth)
    p, predicted = scores.detach().float().softmax(1).cpu(), scores.argmax(1).tolist()
    images = _originals(query_x, originals and originals[1], overlay)
    columns, header = [c for c in range(n_way) if c != against], int(support_x is not None)
    per_class = 1 if attention is None else 2
    grid = _Grid(header + n_query, 1 + per_class * len(columns), size, cmap, overlay, contours)
    if support_x is not None and support_y is not None:
        row, examples = grid.axes[0], _originals(support_x, originals and originals[0], overlay)
        row[0].text(1, .5, 'support', ha='right', va='center', fontsize=9, transform=row[0].transAxes)
        for ax, c in zip(row[1::per_class], columns):
            ax.imshow(examples[int((support_y == c).nonzero()[0])].image)
            grid.title(ax, names[c])
    for q, row in enumerate(grid.axes[header:]):
        row[0].imshow(images[q].image)
        right = query_y is None or int(query_y[q]) == predicted[q]
        grid.title(row[0], 'query' if query_y is None else names[int(query_y[q])])
        for ax, beside, c in zip(row[1::per_class], row[per_class::per_class], columns):
            grid.heatmap(ax, heat[q, c], images[q])
            grid.title(ax, names[c], f' {p[q, c]:.2f}', bold=c == predicted[q])
            if c == predicted[q]: _frame(ax, 'black' if query_y is None else RIGHT if right else WRONG)
            if attention is not None: _draw_attention(beside, attention[q, c], to_image(query_x[q]))
    return grid.finish(save, 'against' if against is None else f'for\n{fitted(names[against], .8, 7)}')


def plot_support_heatmaps(
    support_x: Tensor, # Images `(n_support, 3, height, width)`
    R: Tensor, # Their relevance for one query `(n_way, n_support, channels, height, width)`
    support_y: Tensor, # Their labels
    classes: Sequence[Any] | None = None, # Names of the classes
    overlay: bool = True, # Draw smooth heatmaps over the grey image, at its own size; False: as computed, as the paper does
    percentile: float = 99.5, # See `to_heatmaps`; all maps share a scale
    cmap: str = DIVERGING, # Red speaks for the class, blue against it; 'PuOr_r' or 'RdBu_r' for the colour-blind
    size: float = 1.6, # Side of a picture in inches
    *,
    against: int | None = None, # As in `plot_heatmaps`
    originals: Originals | None = None, # As in `plot_heatmaps`
    contours: bool = True, # Contours of the relevance, with `overlay`
    smooth: float | None = None, # See `to_heatmaps`; None: 1/20 with `overlay`, else 0
    save: str | Path | None = None, # File to write; the ending says the format: svg, pdf, png, …
) -> Figure:
    "A figure of the support images by class: what in each of them speaks for or against the query being of that class"
    names, columns = _names(classes, R.shape[0]), [c for c in range(R.shape[0]) if c != against]
    heat = to_heatmaps(R, percentile, 2, SMOOTH * overlay if smooth is None else smooth)
    images = _originals(support_x, originals and originals[0], overlay)
    grid = _Grid(len(support_x), 1 + len(columns), size, cmap, overlay, contours)
    for s, row in enumerate(grid.axes):
        row[0].imshow(images[s].image)
        grid.title(row[0], names[int(support_y[s])])
        for ax, c in zip(row[1:], columns):
            grid.heatmap(ax, heat[c, s], images[s])
            if not s: grid.title(ax, f'for {names[c]}')
    return grid.finish(save, 'against' if against is None else f'for\n{fitted(names[against], .8, 7)}')
