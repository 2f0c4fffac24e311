"Helpers of all figures: names that fit, files"
from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from .files import atomic_write

__all__ = ['no_math', 'fitted', 'save_figure']


def no_math(
    name: Any, # Name of a class or a domain
) -> str:
    "The name for matplotlib, which takes what stands between two `$` for a formula"
    return str(name).replace('$', r'\$')


def fitted(
    name: Any, # Name of a class or a domain
    inches: float, # Available width
    fontsize: float = 8., # Size in points
    tail: str = '', # Text after the name, which is never shortened
) -> str:
    """The name in one or two lines that fit the width, escaped for matplotlib; a longer name loses its middle.

    >>> fitted('Brachypelma smithi', .9, tail=' 0.93')
    'Brachypelma\\nsmithi 0.93'
    """
    name, bold = str(name), FontProperties(weight='bold', size=fontsize)
    fits = lambda text: text_to_path.get_text_width_height_descent(text, bold, False)[0] / 72 <= inches
    if fits(name + tail): return no_math(name + tail)
    n = next((n for n in range(len(name), 1, -1) if fits(name[:n])), 1)
    gap = max((name.rfind(mark, n // 2, n) for mark in ' _-/'), default=-1) + 1
    first, rest = name[:gap or n].rstrip(), name[gap or n:]
    return no_math(f'{first}\n{_without_middle(rest, tail, fits)}{tail}')


def _without_middle(text: str, tail: str, fits: Any) -> str:
    "The most of a text that fits: its end, which often tells names apart, and half as much of its start"
    shorter = (text[:n - 2 * n // 3] + '…' + text[len(text) - 2 * n // 3:] for n in range(len(text) - 1, 0, -1))
    return next((t for t in (text, *shorter) if fits(t + tail)), '…')


def save_figure(
    path: str | Path, # File; the ending sets the format: svg, pdf, png, …; its folder is created if needed
    figure: Figure | None = None, # The figure; None: matplotlib's current one, which is closed
    dpi: float = 110, # Dots per inch of pictures, also of those within an svg or pdf
) -> None:
    "Write a figure to a file. Raises `ValueError` for an unknown format, and names the known ones"
    drawn, form = figure or plt.gcf(), Path(path).suffix[1:] or 'png'
    with atomic_write(path) as part: drawn.savefig(part, format=form, dpi=dpi, bbox_inches='tight')
    if figure is None: plt.close(drawn)
