"""The tables and the picture of docs/adaptation.md, from what `python -m benchmarks.photographs` found.

    python -m docs.adaptation    # from results/adaptation/*.csv

To measure anew, copy the cells.csv of that command to results/adaptation, by the name of the encoder.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.photographs import FIRST, OF_SEEN, markdown, on_features, unseen
from fsc_fastai.drawing import save_figure

PAGE = Path(__file__).with_suffix('.md')
MEASURED = PAGE.parent.parent/'results'/'adaptation'
LOOK = {False: dict(color='#0072B2', marker='o', label='a query answered alone'),
        True: dict(color='#D55E00', marker='^', label='queries answered together')}
"Blue and vermilion are told apart by everybody, and the shapes without any colour"


def by_domain(cells: pd.DataFrame, shot: int) -> str:
    "Differences to ProtoNet, a column a domain; ProtoNet's own row is its accuracy"
    of = cells[cells.shot == shot]
    table = of.pivot_table(index='method', columns='domain', values='difference', sort=False)
    table = table.map(lambda d: '' if np.isnan(d) else f'{d:+.1f}')
    table.loc[FIRST] = of[of.method == FIRST].set_index('domain').accuracy.map('{:.1f}'.format)
    table = table.fillna('')
    domains = [o for o in (*OF_SEEN, *sorted(set(table.columns) - set(OF_SEEN))) if o in table]
    rows = [[f'{shot}-shot', *domains], ['---'] * (1 + len(domains)), *([name, *row[domains]] for name, row in table.iterrows())]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def draw(ax: Axes, means: pd.DataFrame, transductive: dict[str, bool]) -> None:
    "Accuracy against milliseconds; names stand beside the points, moved apart where points are near each other"
    means = means.sort_values('accuracy')
    for kind, look in LOOK.items():
        of = means[means.method.map(transductive) == kind]
        ax.errorbar(of.ms, of.accuracy, of.ci95, fmt='none', ecolor=look['color'], alpha=.4, lw=1)
        ax.scatter(of.ms, of.accuracy, s=28, zorder=3, **look)
    ax.set_xscale('log')
    x = np.log10(means.ms)
    gap, wide = (means.accuracy.max() - means.accuracy.min()) / 26, max(np.ptp(x), 1) / 2.2
    placed: list[tuple[float, float]] = []
    for at, (_, o) in zip(x, means.iterrows()):
        y = max([o.accuracy, *(b + gap for a, b in placed if abs(a - at) < wide)])
        placed.append((at, y))
        ax.annotate(o.method.replace(', base mean', ''), (o.ms, o.accuracy), (o.ms * 10**(wide / 12), y), fontsize=9, va='center',
                    color=LOOK[transductive[o.method]]['color'], arrowprops=dict(arrowstyle='-', lw=.4, color='0.6', shrinkB=3))
    ax.set(xlabel='milliseconds an episode (encoding apart)', xlim=(means.ms.min() / 1.6, means.ms.max() * 14))
    ax.grid(alpha=.25)


def write_page(found: dict[str, pd.DataFrame]) -> None:
    "Put the tables between the marks of the page"
    before, rest = PAGE.read_text(encoding='utf-8').split('<!-- tables -->\n')
    _, after = rest.split('<!-- end of tables -->\n')
    tables = '\n'.join(f'**{name}**\n{markdown(cells)}\n\n{by_domain(cells, 5)}\n' for name, cells in found.items())
    PAGE.write_text(f'{before}<!-- tables -->\n{tables}<!-- end of tables -->\n{after}', encoding='utf-8')


def main() -> None:
    transductive = {name: bool(method and method.transductive) for name, method in on_features(*[torch.zeros(1)] * 3).items()}
    found = {file.stem: pd.read_csv(file) for file in sorted(MEASURED.glob('*.csv'))}
    write_page(found)
    means = unseen(found['resnet10'])
    shots = sorted(means.shot.unique())
    fig, axes = plt.subplots(1, len(shots), figsize=(5.2 * len(shots), 6.5), layout='constrained', squeeze=False)
    for ax, shot in zip(axes[0], shots):
        draw(ax, means[means.shot == shot], transductive)
        ax.set_title(f'{shot} example{"s" if shot > 1 else ""} a class')
    axes[0, 0].set_ylabel('accuracy on unseen domains, %')
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=2)
    save_figure(PAGE.with_suffix('.png'), fig)


if __name__ == '__main__': main()
