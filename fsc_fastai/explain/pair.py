"BiLRP: which parts of two images make them similar (Eberle et al. 2020)"
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from ..briefly import brief_repr
from ..data.size import Box
from ..drawing import fitted, save_figure
from ..tensors import plain
from .engine import undisturbed
from .explainer import Explainer
from .lrp import LRP
from .overlay import DIVERGING, Original, colour_bar
from .to_pixels import encoded, through_encoder

__all__ = ['PairExplanation', 'explain_pair']


@dataclass(frozen=True)
class PairExplanation:
    "The similarity of two images, divided among all pairs of their parts"
    relevance: Tensor # `(grid, grid, grid, grid)`: row and column in the first image, then in the second
    similarity: float # The dot product of the vectors that the method compares
    images: tuple[Original, Original] # Both images as they are drawn
    __repr__ = brief_repr

    def strongest(self,
        n: int = 40, # Number of pairs
    ) -> list[tuple[tuple[int, int], tuple[int, int], float]]:
        "The pairs of cells with the largest |R|, the largest first: (row, column) in both images, and R"
        values = self.relevance.flatten()
        order = values.abs().argsort(descending=True)[:n]
        cells = zip(*(i.tolist() for i in torch.unravel_index(order, self.relevance.shape)))
        return [((a, b), (c, d), R) for (a, b, c, d), R in zip(cells, values[order].tolist()) if R]

    def plot(self,
        n: int = 40, # Number of strongest connections to draw
        names: tuple[str, str] = ('', ''), # Titles of the images
        cmap: str = DIVERGING, # Red makes the images similar, blue dissimilar; 'PuOr_r' for the colour-blind
        size: float = 3., # Inches of a picture
        save: str | Path | None = None, # File to write; the ending says the format: svg, pdf, png, …
    ) -> Figure:
        "A figure of both images with lines between their parts; wider and more opaque lines are more relevant"
        fig, axes = plt.subplots(1, 2, figsize=(2.2 * size + .8, size * 1.2), layout='constrained')
        for ax, original, name in zip(axes, self.images, names):
            ax.imshow(original.image)
            ax.set(xticks=[], yticks=[])
            ax.set_title(fitted(name, size, 10), fontsize=10)
        colour_bar(fig, cmap, 'differ', 'alike')
        grid = self.relevance.shape[0]
        found = self.strongest(n)[::-1] # the strongest is drawn last, on top
        top = max((abs(R) for *_, R in found), default=1.)
        fig.canvas.draw() # places both axes, whose coordinates the lines join
        fig.set_layout_engine('none')
        to_figure = fig.transFigure.inverted()
        place = lambda i, cell: to_figure.transform(axes[i].transData.transform(_middle(cell, self.images[i].box, grid)))
        lines = [[place(0, a), place(1, b)] for a, b, _ in found]
        strength = np.array([abs(R) / top for *_, R in found])
        drawn = LineCollection(lines, array=np.array([R / top for *_, R in found]), cmap=cmap, alpha=strength, clim=(-1, 1),
                               linewidths=.5 + 2.5 * strength, transform=fig.transFigure, capstyle='round')
        fig.add_artist(drawn)
        if save is not None: save_figure(save, fig, dpi=200)
        return fig


def _middle(cell: tuple[int, int], box: Box, grid: int) -> tuple[float, float]:
    "x and y of the middle of a cell, in the coordinates of a drawn image"
    (row, column), (left, top, right, bottom) = cell, box
    return left + (column + .5) * (right - left) / grid - .5, top + (row + .5) * (bottom - top) / grid - .5


def explain_pair(
    model: Any, # A few-shot model that compares by a product: ProtoNet, MatchingNet or CrossAttentionNet
    a: Tensor, # One image `(3, height, width)`, as the encoder takes it
    b: Tensor, # Another one, of the same size
    explainer: Explainer | None = None, # `LRP()` (default), or gradients: then products of two gradients × input
    grid: int = 8, # Rows and columns of the grid over which relevance is summed
    n_components: int | None = 64, # Random directions of the features to pass back; None: every feature, which is exact
    centre: Tensor | None = None, # Images `(n, 3, height, width)` whose mean vector is subtracted from both vectors
    seed: int = 0, # Seed of the random directions
    chunk: int = 64, # Maps that pass back through the encoder at once
) -> PairExplanation:
    """R(p, p') = Σ_k LRP_k(a)_p · LRP_k(b)_p' (Eberle et al. 2020), summed over the cells of a grid.

    The similarity is the product Σ_k u_k(a) u_k(b) of the vectors that the method compares: unit vectors for a cosine (ProtoNet,
    MatchingNet; CrossAttentionNet after cross attention, which counts as constant). For a Euclidean distance
    −‖u − v‖² = 2u·v − ‖u‖² − ‖v‖² it is the product u·v. With `centre`, the mean m of other images, it is that of u − m and
    v − m, which separates classes even if all vectors are similar; features that are 0 everywhere in an image are left out,
    because their relevance has no position.

    Exact relevance needs one pass per feature through both sides. `n_components` random orthogonal directions need one pass
    each and give R in expectation, since relevance is linear in its start; the error falls with their number. Raises `TypeError`
    for a method that compares otherwise, and `ValueError` in training mode, for images of two sizes, and for numbers below 1.
    """
    if model.training: raise ValueError('explain_pair in training mode, where batch norm mixes the images: call model.eval()')
    if a.ndim != 3 or a.shape != b.shape:
        raise ValueError(f'explain_pair takes two images (channels, height, width) of one size, found {tuple(a.shape)} and '
                         f'{tuple(b.shape)}')
    if not 1 <= grid <= min(a.shape[1:]): raise ValueError(f'grid={grid}: from 1 to the {min(a.shape[1:])} pixels of the images')
    if n_components is not None and n_components < 1: raise ValueError(f'n_components={n_components}: at least 1, or None')
    rules = LRP() if explainer is None else explainer
    images = torch.stack([plain(a), plain(b)]).detach()
    with undisturbed(images.device, model), torch.no_grad():
        vectors = _compared(model, encoded(model, images, chunk))
        if centre is not None:
            others = encoded(model, plain(centre), chunk)
            vectors = vectors - torch.stack([_compared(model, f.expand(2, *f.shape))[0] for f in others]).mean(0)
        W = directions(vectors.shape[1], n_components, seed).to(vectors)
    flows = [_flows(model, f * images, rules, vectors, W, chunk) for f in rules.fractions]
    R = rules.finish(images, torch.stack(flows).mean(0)).sum(2) # (n_directions, 2, height, width)
    rows, columns = (_cells(n, grid).to(R) for n in images.shape[2:])
    of_a, of_b = torch.einsum('knhw,gh,fw->nkgf', R, rows, columns)
    return PairExplanation(torch.einsum('kgf,kde->gfde', of_a, of_b), float(vectors[0] @ vectors[1]),
                           (Original.seen(images[0]), Original.seen(images[1])))


def _compared(model: Any, f: Tensor) -> Tensor:
    "The vectors of two feature maps `(2, C, H, W)` that the method compares, `(2, d)`"
    found = model.compared_vectors(f[:1], f[1:])
    if found is None:
        raise TypeError('explain_pair needs a score that is a product of two vectors, one of each image, as of ProtoNet, '
                        f'CrossAttentionNet and MatchingNet without full context; {type(model).__name__} compares otherwise: '
                        'use explain(…, explain_support=True)')
    return torch.cat(found)


def _flows(model: Any, images: Tensor, rules: Explainer, vectors: Tensor, W: Tensor, chunk: int) -> Tensor:
    "What arrives at both images `(n_directions, 2, channels, height, width)`"
    with undisturbed(images.device, model), torch.no_grad(): f = encoded(model, images, chunk)
    run = rules.trace(lambda f: _compared(model, f), f, model=model, deep=True)
    start = W[:, None] * rules.start_of_output(vectors)
    flow = torch.cat([run.relevance(s, keep=True)[0] for s in start.split(chunk)])
    return through_encoder(model, images, flow, rules, chunk)


def directions(
    size: int, # Length of the vectors
    n: int | None, # Number of directions; None: one for each feature
    seed: int = 0, # Seed of the random numbers
) -> Tensor:
    "Random orthogonal directions W `(n, size)` with E[WᵀW] = 1, and WᵀW = 1 if n = size"
    if n is None or n >= size: return torch.eye(size)
    random = torch.randn(size, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(random).Q.T.float() * (size / n)**.5


def _cells(n: int, grid: int) -> Tensor:
    "Which of n pixels in a row are in which cell, `(grid, n)`"
    return (torch.arange(n) * grid // n == torch.arange(grid)[:, None]).float()
