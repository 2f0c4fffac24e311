"Training curves: the accuracy of every epoch, and whether it has levelled off"
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from ..files import atomic_write

__all__ = ['training_frame', 'plot_training']


def training_frame(
    results: Iterable[dict[str, Any]], # From `run_cell`
) -> pd.DataFrame:
    """One row per training: model, shot, seed, stage, epochs, best, accuracy (of the best epoch, in %), last_third, accuracies.

    last_third is the gain of the best epoch in the last third over the best epoch before, in points; a large gain means that the
    training had not levelled off. An encoder that several cells share has one row.
    """
    rows = {}
    for r in results:
        for stage, accuracies in r.get('training', {}).items():
            shared = stage == 'pretraining'
            model, shot = (r['recipe']['arch'], '') if shared else (r['model'], r['cell']['shot'])
            before = len(accuracies) - max(len(accuracies) // 3, 1)
            rise = max(accuracies[before:]) - max(accuracies[:before], default=0.)
            rows[stage, model, shot, r['cell']['seed'], r['cell']['unseen'] * (not shared)] = dict(
                model=model, shot=shot, seed=r['cell']['seed'], stage=stage, epochs=len(accuracies),
                best=accuracies.index(max(accuracies)) + 1, accuracy=100*max(accuracies), last_third=100*rise,
                accuracies=accuracies)
    return pd.DataFrame(rows.values())


def plot_training(
    frame: pd.DataFrame, # From `training_frame`
    path: Path, # File of the picture
) -> None:
    "Plot the accuracy of every epoch, one line per training, one panel per stage"
    stages = list(frame.groupby('stage', sort=False))
    fig, axes = plt.subplots(1, len(stages), figsize=(5*len(stages), 3.4), squeeze=False, layout='constrained')
    for ax, (stage, rows) in zip(axes[0], stages):
        for i, (model, of_model) in enumerate(rows.groupby('model', sort=False)):
            for k, accuracies in enumerate(of_model.accuracies):
                ax.plot(range(1, len(accuracies) + 1), [100*a for a in accuracies], color=f'C{i}', label='' if k else model, lw=1)
        ax.set_title(stage, fontsize=9)
        ax.set_xlabel('epoch')
        ax.legend(fontsize=7)
    axes[0, 0].set_ylabel('accuracy (%)')
    with atomic_write(path) as part: fig.savefig(part, dpi=110, format='png')
    plt.close(fig)
