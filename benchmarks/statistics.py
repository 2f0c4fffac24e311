"""How much accuracy fixed statistics cost: published batch norms beside those of a deployed classifier, on paired episodes.

    python -m benchmarks.statistics [--episodes 60] [--seeds 2]

Models of `fsc_reproduce`'s preset `small`, each tested with the shots that it was trained with, on held-out Latin glyphs and on
four other scripts. As published, the batch norms of RelationNet and GNNNet use the statistics of all queries at hand: of a whole
episode, or of one query if queries come one at a time. Deployed, they use those of the support set. Takes about ten minutes.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.options import options
from benchmarks.timing import note
from fsc_fastai.data.sampler import EpisodeSampler
from fsc_fastai.learner.core import FSCLearner
from fsc_fastai.learner.episode_scores import encode_images
from fsc_fastai.learner.metrics import ci95
from fsc_fastai.methods.base import one_hot
from fsc_fastai.methods.head import Head
from fsc_fastai.reproduce.cells import PRESETS, Cell
from fsc_fastai.reproduce.table_data import glyph_data
from fsc_fastai.reproduce.training import train_cell

N_WAY, N_QUERY = 5, 5
FOLDER = Path(__file__).parents[1]/'build'/'statistics' # Of trained models, which a second call finds again


@torch.no_grad()
def correct(learn: FSCLearner, head: Head, f_support: Tensor, f_query: Tensor) -> list[float]:
    "Accuracies on an episode as published, as published with one query at a time, and deployed"
    member = one_hot(torch.arange(N_WAY).repeat_interleave(len(f_support) // N_WAY))
    y = torch.arange(N_WAY).repeat_interleave(N_QUERY)
    one_by_one = [learn.model.forward_head(f_support, member, q[None]) for q in f_query]
    scores = learn.model.forward_head(f_support, member, f_query), torch.cat(one_by_one), head.fit(f_support, member)(f_query)
    return [(s.argmax(1) == y).float().mean().item() for s in scores]


def compare(learn: FSCLearner, cell: Cell, n_episodes: int) -> list[dict]:
    "A row for each domain: the accuracies in percent, and the paired difference of the deployed to the published one"
    rows, head = [], learn.model.head(statistics='support')
    for name, dl in learn.dls.domains.items():
        features = encode_images(learn.model, dl.images())
        sampler = EpisodeSampler(dl.labels, N_WAY, cell.shot, N_QUERY, seed=7)
        episodes = [sampler.episode(k) for k in range(n_episodes)]
        found = 100 * np.array([correct(learn, head, features[e.support], features[e.query]) for e in episodes])
        batch, alone, deployed = found.mean(0)
        difference = found[:, 2] - found[:, 0]
        rows.append(dict(model=cell.model, shot=cell.shot, seed=cell.seed, domain=name, published=batch, one_at_a_time=alone,
                         deployed=deployed, difference=difference.mean(), ci95=ci95(difference)))
    return rows


def main() -> None:
    args = options(__doc__, rounds=None, episodes=dict(type=int, default=60), seeds=dict(type=int, default=2))
    data, preset, rows = glyph_data(), PRESETS['small'], []
    for cell in [Cell(base, shot, seed) for base in ('RN', 'GNN') for shot in (5, 1) for seed in range(args.seeds)]:
        (FOLDER/'cells'/cell.key).mkdir(parents=True, exist_ok=True)
        rows += compare(train_cell(cell, preset.recipes[cell.base], data, FOLDER), cell, args.episodes)
    note('```\n' + pd.DataFrame(rows).round(1).to_string(index=False) + '\n```')


if __name__ == '__main__': main()
