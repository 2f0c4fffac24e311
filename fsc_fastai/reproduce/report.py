"The report of a run: accuracies with intervals, paired effects of explanations, and the numbers of the paper"
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats

from ..drawing import no_math
from ..files import atomic_write
from ..learner.metrics import ci95
from .cells import CONTROLS, LAMBDAS, LATER
from .curves import plot_training
from .paper import PUBLISHED

__all__ = ['mean_and_ci', 'summarise', 'paired_effects', 'transductive_effects', 'markdown', 'write_report']

PAIRS = (('RN', 'LRP-RN'), ('CAN', 'LRP-CAN'), ('GNN', 'LRP-GNN'), ('PN', 'LRP-PN'), ('RN', 'FT-RN'),
         ('GNN', 'FT-GNN'), ('PN', 'FT-PN'), ('RN', 'LFT-RN'), ('LFT-RN', 'LFT-LRP-RN'))
"The steps of the paper, each with its baseline"
CONTROL_PAIRS = (*((a, b) for c in CONTROLS for a, b in (('RN', f'{c.capitalize()}-RN'), (f'{c.capitalize()}-RN', 'LRP-RN'))),
                 *(('RN', f'LRP-RN λ={lam:g}') for lam in LAMBDAS))
"What a control adds to the plain training, and relevance to the control; what other weights of the guided loss add"

LATER_PAIRS = tuple((f'{without}{base}', f'{way}-{base}') for base in ('GNN', 'PN') for without, way in (
    *(('', way) for way in LATER), *((f'{way}-', f'LRP-{way}') for way in LATER)))
"What later ways of training add to the plain one, and guidance to them"


def mean_and_ci(
    values: Sequence[float], # One value per seed
) -> tuple[float, float]:
    "Mean over seeds, and half the width of its 95 % interval by Student's t, nan for a single seed"
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return float(np.mean(values)), float(half)


def summarise(
    frame: pd.DataFrame, # From `results_frame`
) -> pd.DataFrame:
    "Accuracy in % over the seeds: model, shot, transductive, domain, seeds, accuracy, ci95 (over seeds)"
    keys = ['model', 'shot', 'transductive', 'domain']
    rows = [dict(zip(keys, key)) | dict(zip(('accuracy', 'ci95'), mean_and_ci(100*group.accuracy))) | dict(seeds=len(group))
            for key, group in frame.groupby(keys, sort=False)]
    return pd.DataFrame(rows)


def paired_effects(
    frame: pd.DataFrame, # From `results_frame`
) -> pd.DataFrame:
    """The gain by explanations or transformations in percentage points, with the same seed, initial weights and test episodes.

    Columns: baseline, model, shot, transductive, domain, seeds, difference, ci95 (over the seeds, Student's t), test_ci95 (of a
    single seed: over the paired test episodes). The domain `all unseen` averages the targets of each seed first.
    """
    keys = ['shot', 'transductive']
    return _effects(((baseline, model, frame[frame.model == baseline], frame[frame.model == model])
                     for baseline, model in PAIRS + CONTROL_PAIRS + LATER_PAIRS), keys, frame.attrs.get('seen', ()))


def transductive_effects(
    frame: pd.DataFrame, # From `results_frame`
) -> pd.DataFrame:
    "The gain by transductive inference for each model, with the columns of `paired_effects` except transductive"
    models = frame[frame.transductive].model.unique()
    return _effects(((model, f'{model}, transductive', own[~own.transductive], own[own.transductive])
                     for model, own in ((m, frame[frame.model == m]) for m in models)), ['shot'], frame.attrs.get('seen', ()))


def _effects(pairs: Iterable[tuple[str, str, pd.DataFrame, pd.DataFrame]], keys: list[str],
             seen: Sequence[str]) -> pd.DataFrame:
    "The differences of results of two names, paired by seed, `keys` and domain"
    rows = []
    for baseline, model, *results in pairs:
        a, b = (r.set_index(['seed', *keys, 'domain'])[['accuracy', 'right', 'queries']] for r in results)
        both = a.join(b.add_suffix('_b'), how='inner').reset_index()
        both['difference'] = 100*(both.accuracy_b - both.accuracy)
        both['test_ci95'] = [100*ci95(np.subtract(r.right_b, r.right) / r.queries) for r in both.itertuples()]
        mean = both[~both.domain.isin(seen)].groupby(['seed', *keys], as_index=False).agg(
            difference=('difference', 'mean'), test_ci95=('test_ci95', lambda ci: math.sqrt((ci**2).sum()) / len(ci)))
        for key, group in pd.concat([both, mean.assign(domain='all unseen')]).groupby([*keys, 'domain'], sort=False):
            rows.append(dict(baseline=baseline, model=model) | dict(zip([*keys, 'domain'], key))
                        | dict(zip(('difference', 'ci95'), mean_and_ci(group.difference)))
                        | dict(test_ci95=group.test_ci95.iloc[0] if len(group) == 1 else math.nan, seeds=len(group)))
    return pd.DataFrame(rows)


def markdown(
    table: pd.DataFrame, # Any data frame
) -> str:
    "A frame as a Markdown table"
    head = '| ' + ' | '.join(map(str, table.columns)) + ' |'
    rows = ['| ' + ' | '.join(map(str, row)) + ' |' for row in table.itertuples(index=False)]
    return '\n'.join([head, '|' + '---|'*len(table.columns), *rows])


def _wide(summary: pd.DataFrame) -> pd.DataFrame:
    "Models down, domains across, as the paper prints them"
    shown = summary.assign(value=[f'{r.accuracy:.2f} ± {r.ci95:.2f}' if r.seeds > 1 else f'{r.accuracy:.2f}'
                                  for r in summary.itertuples()])
    wide = shown.pivot_table('value', ['model', 'shot', 'transductive'], 'domain', aggfunc='first', sort=False)
    return wide.fillna('–').reset_index()


def _effects_shown(effects: pd.DataFrame) -> str:
    shown = [f'{r.difference:+.2f} ' + (f'± {r.ci95:.2f}' if r.seeds > 1 else f'(± {r.test_ci95:.2f})')
             for r in effects.itertuples()]
    return markdown(effects.assign(difference=shown).drop(columns=['ci95', 'test_ci95']))


def _published(table: str) -> pd.DataFrame:
    "The paper's table in the same layout"
    rows = [dict(model=m, shot=s, transductive=t, domain=d, accuracy=acc, ci95=ci, seeds=2)
            for (m, d, s, t), (acc, ci) in PUBLISHED[table].items()]
    return _wide(pd.DataFrame(rows))


def _plot(effects: pd.DataFrame, path: Path) -> None:
    "The paired differences with their intervals, one panel a pair of models"
    shown = effects[~effects.transductive]
    pairs = list(dict.fromkeys(zip(shown.baseline, shown.model)))
    fig, axes = plt.subplots(1, len(pairs), figsize=(3.2*len(pairs), 3), sharey=True, squeeze=False, layout='constrained')
    for ax, (baseline, model) in zip(axes[0], pairs):
        for i, (shot, rows) in enumerate(shown[shown.model == model].groupby('shot')):
            ax.errorbar(np.arange(len(rows)) + 0.15*i, rows.difference, yerr=rows.ci95, fmt='o', capsize=3, label=f'{shot}-shot')
            ax.set_xticks(range(len(rows)), list(map(no_math, rows.domain)), rotation=45, ha='right')
        ax.axhline(0, c='grey', lw=1)
        ax.set_title(f'{model} − {baseline}', fontsize=9)
    axes[0, 0].set_ylabel('percentage points')
    axes[0, 0].legend(fontsize=8)
    with atomic_write(path) as part: fig.savefig(part, dpi=110, format='png')
    plt.close(fig)


def write_report(
    frame: pd.DataFrame, # A `results_frame`; its `attrs['seen']` names domains that are not unseen
    table: str, # table2, table3, table4, controls or later
    folder: Path, # Folder of the report
    command: str, # The command line that made it, printed in the report
    description: str, # Protocol and preset in a sentence
    training: pd.DataFrame, # From `training_frame`
) -> Path:
    "Write `<table>.md`, `.csv` and `.png` with accuracies, paired effects and the paper's table. Returns the Markdown file"
    summary, effects, transduction = summarise(frame), paired_effects(frame), transductive_effects(frame)
    parts = [f'# {table}: ours beside the paper', f'Made by `{command}`. {description}',
             '## Ours', "Mean accuracy in % over the seeds, ± its 95 % interval over the seeds (Student's t).",
             markdown(_wide(summary)),
             *(['## What each step adds',
                'Percentage points, paired: the same seed gives the same pre-trained encoder, first weights, training and test '
                'episodes. An interval that holds 0 shows no effect. In brackets, for a single seed: the interval over its test '
                'episodes, which says nothing of how another training would end.',
                _effects_shown(effects), f'![paired differences]({table}.png)'] if len(effects) else []),
             *(['## What transductive inference adds', 'In percentage points: the same models on the same episodes.',
                _effects_shown(transduction)] if len(transduction) else []),
             *(['## Has training levelled off?',
                'Accuracy in %: in pre-training on held-out images of the base classes, in training on episodes of the '
                'validation classes. Last third: what the best epoch of the last third has over the best before, in points.',
                markdown(training.drop(columns='accuracies').round(1)), f'![accuracy by epoch]({table}_training.png)']
               if len(training) else []),
             *(['## The paper', 'Sun et al. 2020, trained on miniImageNet, 2000 episodes; ± over the episodes of one model.',
                markdown(_published(table))] if table in PUBLISHED else [])]
    for name, written in (('', summary), ('_effects', effects), ('_transductive', transduction)):
        if len(written):
            with atomic_write(folder/f'{table}{name}.csv') as part: written.to_csv(part, index=False)
    if len(effects): _plot(effects, folder/f'{table}.png')
    if len(training): plot_training(training, folder/f'{table}_training.png')
    with atomic_write(folder/f'{table}.md') as part: part.write_text('\n\n'.join(parts) + '\n', encoding='utf-8')
    return folder/f'{table}.md'
