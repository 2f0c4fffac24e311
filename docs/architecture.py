"The picture of the architecture in README: `python -m docs.architecture`"
from __future__ import annotations

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

__all__ = ['draw']

PLAIN, GUIDED, INK = '#dbe7f5', '#fbe3d6', '#333333'


def box(ax: Axes, x: float, y: float, text: str, colour: str = PLAIN, width: float = 1.5) -> None:
    "A rounded box around its centre"
    ax.add_patch(FancyBboxPatch((x - width/2, y - .3), width, .6, 'round,pad=0,rounding_size=.12', fc=colour, ec=INK, lw=1))
    ax.text(x, y, text, ha='center', va='center', fontsize=11, color=INK)


def arrow(ax: Axes, *corners: tuple[float, float], label: str = '') -> None:
    "An arrow along some corners, with a label above the middle of its first part"
    for a, b in zip(corners, corners[1:-1]): ax.plot(*zip(a, b), c=INK, lw=1.1, solid_capstyle='round')
    ax.add_patch(FancyArrowPatch(*corners[-2:], arrowstyle='-|>', mutation_scale=12, lw=1.1, color=INK, shrinkA=0, shrinkB=0))
    (x0, y0), (x1, y1) = corners[:2]
    ax.text((x0 + x1)/2, (y0 + y1)/2 + .08, label, ha='center', va='bottom', fontsize=11, style='italic', color=INK)


def draw(
    file: Path, # Where to write the picture
) -> None:
    "Figure 2 of Sun et al. 2020: encode, process, classify; below it what explanation-guided training adds"
    fig, ax = plt.subplots(figsize=(11, 3.4), layout='constrained')
    ax.set(xlim=(0, 14.6), ylim=(-.1, 4.3), aspect='equal')
    ax.axis('off')
    for y, name in ((3.9, 'support images'), (2.9, 'query images')):
        box(ax, 1.2, y, name, 'white', 2)
        arrow(ax, (2.2, y), (2.6, y), (2.6, 3.4), (3, 3.4))
    for x, name in ((3.75, 'encode'), (6.15, 'process'), (8.75, 'classify')): box(ax, x, 3.4, name)
    arrow(ax, (4.5, 3.4), (5.4, 3.4), label='f')
    arrow(ax, (6.9, 3.4), (8, 3.4), label='$f_p$')
    arrow(ax, (9.5, 3.4), (10.5, 3.4), label='p')
    box(ax, 11.3, 3.4, '$L(y, p)$', 'white', 1.6)

    box(ax, 8.75, 2.1, 'explain', GUIDED)
    arrow(ax, (8.75, 3.1), (8.75, 2.4))
    arrow(ax, (8, 2.1), (7.3, 2.1), label='R')
    box(ax, 5.9, 2.1, '$w = 1 + R\\,/\\,max|R|$', GUIDED, 2.8)
    arrow(ax, (7.45, 3.4), (7.45, 1.3), (7.45, .7), (7.05, .7))
    arrow(ax, (5.9, 1.8), (5.9, 1))
    box(ax, 5.9, .7, '$w \\odot f_p$', GUIDED, 2.3)
    arrow(ax, (5.9, .4), (5.9, .1), (8.75, .1), (8.75, .4))
    box(ax, 8.75, .7, 'classify')
    arrow(ax, (9.5, .7), (10.4, .7), label='$p_{lrp}$')
    box(ax, 11.3, .7, '$L(y, p_{lrp})$', GUIDED, 1.8)
    arrow(ax, (11.3, 3.1), (11.3, 2.4))
    arrow(ax, (11.3, 1), (11.3, 1.8))
    box(ax, 12.05, 2.1, '$\\xi\\,L(y, p) + \\lambda\\,L(y, p_{lrp})$', GUIDED, 3.9)
    fig.savefig(file, dpi=110)
    plt.close(fig)


if __name__ == '__main__':
    matplotlib.use('Agg')
    draw(Path(__file__).with_suffix('.png'))
