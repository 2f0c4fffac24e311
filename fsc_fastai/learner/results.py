"The results of `learn.evaluate` as a table for the terminal and as a figure"
from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ..data.sampler import Count, as_range, count_text
from ..drawing import no_math, save_figure

__all__ = ['Accuracies', 'format_table', 'plot_results', 'save_figure']


class Accuracies(pd.DataFrame):
    """A frame that displays accuracies in percent, on a terminal and in a notebook.

    >>> Accuracies([dict(domain='greek', accuracy=.5, ci95=.01, images='3f')])
      domain accuracy    ci95 images
    0  greek  50.00 % ±1.00 %     3f
    """
    @property
    def _constructor(self) -> type[Accuracies]: return Accuracies

    def _shown(self) -> dict[str, Any]:
        "How columns are shown, and how many rows"
        percent, interval = (lambda x: f'{100*x:.2f} %'), (lambda x: f'±{100*x:.2f} %')
        known = dict(accuracy=percent, difference=lambda x: f'{100*x:+.2f} %', chance=percent, ci95=interval)
        return dict(formatters={k: known[k] for k in self if k in known}, max_rows=pd.options.display.max_rows)

    def __repr__(self) -> str: return self.to_string(**self._shown())
    def _repr_html_(self) -> str: return self.to_html(**self._shown())


def _chance(way: Count) -> float:
    "What guessing gets right in percent, on average over the ways that episodes draw"
    low, high = as_range('way', way)
    return float((100 / np.arange(low, high + 1)).mean())


def format_table(
    table: pd.DataFrame, # A table of `learn.evaluate`
) -> str:
    "The table for a terminal: percentages, and the chance level"
    shown = table[['domain', *(['adapt'] if 'adapt' in table else []), 'way', 'shot', 'n_episodes', 'n_query', 'protocol']].copy()
    shown['accuracy %'] = [f'{100*acc:.2f} ± {100*ci:.2f}' for acc, ci in zip(table.accuracy, table.ci95)]
    shown['chance %'] = [f'{_chance(way):.0f}' for way in table.way]
    for name in ('way', 'shot', 'n_query'): shown[name] = table[name].map(count_text)
    return shown.to_string(index=False)


def plot_results(
    tables: dict[str, pd.DataFrame], # Tables of `learn.evaluate` by name, over the same domains
    ax: plt.Axes | None = None, # Axes to draw on; None: a new figure
) -> plt.Axes:
    "Plot accuracies by domain as bars with 95 % intervals; chance is dashed. Raises `ValueError` without a table"
    if not tables: raise ValueError('no tables to plot: give {name: learn.evaluate(...)}')
    ax = ax or plt.subplots(figsize=(9, 4), layout='constrained')[1]
    width, first = 0.8 / len(tables), next(iter(tables.values()))
    for i, (name, table) in enumerate(tables.items()):
        at = [j + i*width for j in range(len(table))]
        ax.bar(at, 100*table.accuracy, width, yerr=100*table.ci95, label=no_math(name), capsize=2)
    ax.axhline(_chance(first.way.iloc[0]), ls='--', c='grey', label='chance')
    ax.set_xticks([j + 0.4 - width/2 for j in range(len(first))], list(map(no_math, first.domain)))
    ax.set_ylabel('accuracy (%)')
    ax.set_title(f'{count_text(first.way.iloc[0])}-way {count_text(first["shot"].iloc[0])}-shot, {first.protocol.iloc[0]}')
    ax.legend()
    return ax
