"Figures of relevance: queries beside the classes that they are compared with (Figures 1 and 4 of Sun et al. 2020)"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..drawing import no_math

__all__ = ['to_heatmaps', 'to_image', 'plot_heatmaps', 'plot_support_heatmaps']

RIGHT, WRONG = 'tab:green', 'tab:red'
LONGEST = 16 # Characters of a class name that fit above a picture


def to_heatmaps(
    R: Tensor, # Relevance `(..., channels, height, width)`
    percentile: float = 99.5, # Of |R|: what is larger is drawn as the largest, so that one hot pixel hides nothing
    shared: int = 0, # So many of the last leading dimensions, such as the classes, share a scale
) -> np.ndarray:
    """Heatmaps between −1 and 1, `(..., height, width)`: channels summed, 0 stays 0, the same scale on both sides of it.

    Raises `ValueError` for a percentile that is not between 0 and 100.

    >>> to_heatmaps(Tensor([[[1., -2.]], [[0., -2.]]]), percentile=100).round(2)
    array([[ 0.25, -1.  ]], dtype=float32)
    """
    if not 0 < percentile <= 100: raise ValueError(f'percentile={percentile}: should be above 0 and at most 100')
    heat = R.detach().float().sum(-3).cpu().numpy()
    axes = tuple(range(-2 - shared, 0))
    top = np.percentile(np.abs(heat), percentile, axis=axes, keepdims=True)
    # so few pixels may be relevant that the percentile is 0
    top = np.where(top > 0, top, np.abs(heat).max(axis=axes, keepdims=True))
    return np.clip(heat / np.where(top > 0, top, 1), -1, 1)


def to_image(x: Tensor) -> np.ndarray:
    "An image `(channels, height, width)` as an array `(height, width, 3)` between 0 and 1; normalised ones are stretched"
    image = x.detach().as_subclass(Tensor).float().cpu()
    if image.min() < 0 or image.max() > 1: image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-8)
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy()


def _draw_heatmap(
    ax: Axes, # Where to draw
    heat: np.ndarray, # Between −1 and 1
    image: np.ndarray | None = None, # Drawn in grey below, where relevance is small; None: the heatmap alone
    cmap: str = 'seismic', # Red speaks for the class, blue against it
) -> None:
    "Draw one heatmap"
    if image is None: ax.imshow(heat, cmap=cmap, vmin=-1, vmax=1)
    else:
        ax.imshow(image.mean(-1), cmap='gray', vmin=-.5, vmax=1.2)
        colours = plt.get_cmap(cmap)((heat + 1) / 2)
        colours[..., 3] = np.abs(heat) ** .5
        ax.imshow(colours)


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


def _grid(n_rows: int, n_cols: int, size: float) -> tuple[Figure, np.ndarray]:
    fig, axes = plt.subplots(n_rows, n_cols, figsize=(size * n_cols, size * 1.14 * n_rows), squeeze=False, layout='constrained')
    for ax in axes.flat: ax.set_axis_off()
    return fig, axes


def _names(classes: Sequence[Any] | None, n_way: int) -> list[str]:
    if classes is not None and len(classes) != n_way:
        raise ValueError(f'{len(classes)} class names for {n_way} classes: give one each')
    names = [str(c) for c in classes] if classes is not None else [f'class {i}' for i in range(n_way)]
    return [no_math(name if len(name) <= LONGEST else name[:LONGEST - 1] + '…') for name in names]


def _frame(ax: Axes, colour: str) -> None:
    ax.set_axis_on()
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values(): spine.set(color=colour, linewidth=3)


def plot_heatmaps(
    query_x: Tensor, # Images `(n_query, 3, height, width)`
    R: Tensor, # Their relevance `(n_query, n_way, channels, height, width)`
    scores: Tensor, # `(n_query, n_way)`
    support_x: Tensor | None = None, # Images `(n_support, 3, height, width)`: the first of each class is drawn above its column
    support_y: Tensor | None = None, # Their labels
    query_y: Tensor | None = None, # True labels: the predicted class is framed green where right, red where wrong
    classes: Sequence[Any] | None = None, # Names of the classes
    attention: Tensor | None = None, # `(n_query, n_way, H, W)`, drawn beside each heatmap (Figure 4)
    overlay: bool = False, # Draw heatmaps over the grey image instead of beside it
    shared: bool = False, # One scale for the classes of a query, so that they can be compared
    percentile: float = 99.5, # See `to_heatmaps`
    cmap: str = 'seismic', # Red speaks for the class, blue against it
    size: float = 1.6, # Inches of a picture
) -> Figure:
    """Queries by classes, each with the relevance of the query for that class (Sun et al. 2020, Figures 1 and 4).

    Titles have the class and its probability. Raises `ValueError` for shapes or names that do not fit.
    """
    n_query, n_way = scores.shape
    if R.shape[:2] != scores.shape or len(query_x) != n_query:
        raise ValueError(f'{len(query_x)} queries do not fit relevance {tuple(R.shape)} and scores {tuple(scores.shape)}')
    names, heat = _names(classes, n_way), to_heatmaps(R, percentile, int(shared))
    p, predicted = scores.detach().float().softmax(1).cpu(), scores.argmax(1).tolist()
    per_class, header = 1 if attention is None else 2, int(support_x is not None)
    fig, axes = _grid(header + n_query, 1 + per_class * n_way, size)
    if support_x is not None and support_y is not None: _draw_support(axes[0], support_x, support_y, names, per_class)
    for q in range(n_query):
        row, image = axes[header + q], to_image(query_x[q])
        row[0].imshow(image)
        right = query_y is None or int(query_y[q]) == predicted[q]
        row[0].set_title('query' if query_y is None else names[int(query_y[q])], fontsize=8)
        for c in range(n_way):
            ax = row[1 + per_class * c]
            _draw_heatmap(ax, heat[q, c], image if overlay else None, cmap)
            ax.set_title(f'{names[c]} {p[q, c]:.2f}', fontsize=8, fontweight='bold' if c == predicted[q] else 'normal')
            if c == predicted[q]: _frame(ax, 'black' if query_y is None else RIGHT if right else WRONG)
            if attention is not None: _draw_attention(row[2 + per_class * c], attention[q, c], image)
    return fig


def _draw_support(row: np.ndarray, support_x: Tensor, support_y: Tensor, names: list[str], per_class: int) -> None:
    "The first support image of each class above its column"
    row[0].text(1, .5, 'support', ha='right', va='center', fontsize=9, transform=row[0].transAxes)
    for c, name in enumerate(names):
        ax = row[1 + per_class * c]
        ax.imshow(to_image(support_x[int((support_y == c).nonzero()[0])]))
        ax.set_title(name, fontsize=8)


def plot_support_heatmaps(
    support_x: Tensor, # Images `(n_support, 3, height, width)`
    R: Tensor, # Their relevance for one query `(n_way, n_support, channels, height, width)`
    support_y: Tensor, # Their labels
    classes: Sequence[Any] | None = None, # Names of the classes
    overlay: bool = False, # Draw heatmaps over the grey image instead of beside it
    percentile: float = 99.5, # See `to_heatmaps`; all maps share a scale
    cmap: str = 'seismic', # Red speaks for the class, blue against it
    size: float = 1.6, # Inches of a picture
) -> Figure:
    "Support images by classes: what in each of them speaks for, or against, the query being of that class"
    names = _names(classes, R.shape[0])
    heat = to_heatmaps(R, percentile, 2)
    fig, axes = _grid(len(support_x), 1 + len(names), size)
    for s, x in enumerate(support_x):
        image = to_image(x)
        axes[s, 0].imshow(image)
        axes[s, 0].set_title(names[int(support_y[s])], fontsize=8)
        for c, name in enumerate(names):
            _draw_heatmap(axes[s, 1 + c], heat[c, s], image if overlay else None, cmap)
            if not s: axes[s, 1 + c].set_title(f'for {name}', fontsize=8)
    return fig
