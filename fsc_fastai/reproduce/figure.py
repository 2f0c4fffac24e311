"The report of Figure 3: how balanced the channels of encoders are, with and without explanations"
from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ..files import atomic_write
from ..learner.channel_statistics import plot_feature_statistics
from .report import markdown, mean_and_ci

__all__ = ['statistics_effects', 'write_figure']

STATISTICS = ('variance', 'quantile_difference')
PAIRS = (('RN', 'LRP-RN'), ('CAN', 'LRP-CAN'), ('GNN', 'LRP-GNN'))


def statistics_effects(
    frame: pd.DataFrame, # From `statistics_frame`
) -> pd.DataFrame:
    """The change of each statistic by training with explanations, in percent, paired by seed.

    Columns: baseline, model, domain, statistic, seeds, change, ci95_low, ci95_high. Mean and interval (Student's t over the
    seeds) are those of the logarithm of the ratio, since a statistic scales with the features.
    """
    rows = []
    for baseline, model in PAIRS:
        plain, guided = (frame[frame.model == m].set_index(['seed', 'domain']) for m in (baseline, model))
        for statistic in STATISTICS:
            ratios = np.log(guided[statistic] / plain[statistic]).dropna().reset_index(name='log_ratio')
            for domain, group in ratios.groupby('domain', sort=False):
                mean, half = mean_and_ci(group.log_ratio)
                change, low, high = (100 * np.expm1(x) for x in (mean, mean - half, mean + half))
                rows.append(dict(baseline=baseline, model=model, domain=domain, statistic=statistic.replace('_', ' '),
                                 seeds=len(group), change=change, ci95_low=low, ci95_high=high))
    return pd.DataFrame(rows)


def write_figure(
    frame: pd.DataFrame, # From `statistics_frame`
    folder: Path, # Folder of the report
    command: str, # The command line that made it, printed in the report
    description: str, # Protocol and preset in a sentence
) -> Path:
    "Write `figure3.md`, `.csv`, `_effects.csv` and `.png`. Returns the Markdown file"
    means = frame.drop(columns=['shot', 'seed']).groupby(['model', 'domain'], sort=False, as_index=False).mean()
    effects = statistics_effects(frame)
    shown = effects.assign(change=[f'{r.change:+.1f} %' for r in effects.itertuples()],
                           interval=[f'{r.ci95_low:+.1f} … {r.ci95_high:+.1f} %' if r.seeds > 1 else '–'
                                     for r in effects.itertuples()])
    figure = plot_feature_statistics(dict(list(means.groupby('model', sort=False))))
    with atomic_write(folder/'figure3.png') as part: figure.savefig(part, dpi=110, format='png')
    plt.close(figure)
    with atomic_write(folder/'figure3.csv') as part: means.to_csv(part, index=False)
    with atomic_write(folder/'figure3_effects.csv') as part: effects.to_csv(part, index=False)
    parts = ['# figure3: variance and quantile difference over the channels', f'Made by `{command}`. {description}',
             'The 95 % quantile over the positions of each channel, then the variance over the channels and their 95 % − 45 % '
             'quantile difference; mean over the images of a domain, bars: standard deviation over the images. The paper reports '
             'that both fall with explanation-guided training, in every domain and model.',
             '![variance and quantile difference](figure3.png)',
             '## What explanations change',
             'Paired by seed, 95 % interval over the seeds. An interval that holds 0 shows no effect; a single seed has none.',
             markdown(shown.drop(columns=['ci95_low', 'ci95_high']))]
    with atomic_write(folder/'figure3.md') as part: part.write_text('\n\n'.join(parts) + '\n', encoding='utf-8')
    return folder/'figure3.md'
