"""What fixed statistics cost in accuracy: published batch norms against those of a deployed classifier, on paired episodes.

    python -m benchmarks.statistics [--epochs 2] [--episodes 60] [--shot 5] [--methods RelationNet GNNNet]

Trains on Latin glyphs with `--shot` examples a class, and tests with 5 and with 1 on held-out Latin, on Greek and on Cyrillic
ones. Published, the batch norms of both methods use the statistics of all queries at hand: of a whole episode, or of one query
where queries come one at a time. Deployed, they use those of the support set. About ten minutes.
"""
from __future__ import annotations

import argparse
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.torch_core import set_seed
from torch import Tensor

from benchmarks.timing import note
from fsc_fastai.data.glyphs import untar_glyph_domains, untar_glyphs
from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.data.sampler import EpisodeSampler
from fsc_fastai.evaluate import encode_images
from fsc_fastai.inference.heads import DeployedHead, deployed_head
from fsc_fastai.learner import FSCLearner, fsc_learner
from fsc_fastai.metrics import ci95
from fsc_fastai.models.base import one_hot

N_WAY, N_QUERY, SIZE = 5, 5, 40


def trained(dls: EpisodeDataLoaders, method: str, encoder: torch.nn.Module | None, epochs: int) -> FSCLearner:
    "A learner after a short training, from a trained encoder where there is one"
    set_seed(0)
    learn = fsc_learner(dls, 'conv4', method, pretrained=encoder or False)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(epochs, pretrain_epochs=0 if encoder else 8)
    return learn


@torch.no_grad()
def correct(learn: FSCLearner, head: DeployedHead, f_support: Tensor, f_query: Tensor) -> list[float]:
    "Accuracy on an episode: published, published with one query at a time, deployed"
    member = one_hot(torch.arange(N_WAY).repeat_interleave(len(f_support) // N_WAY))
    y = torch.arange(N_WAY).repeat_interleave(N_QUERY)
    one_by_one = [learn.model.forward_head(f_support, member, q[None]) for q in f_query]
    scores = learn.model.forward_head(f_support, member, f_query), torch.cat(one_by_one), head.fit(f_support, member)(f_query)
    return [(s.argmax(1) == y).float().mean().item() for s in scores]


def compare(learn: FSCLearner, method: str, n_episodes: int) -> list[dict]:
    "A row a domain and shot: the accuracies in percent, and the paired difference of the last to the first"
    rows, head = [], deployed_head(learn.model)
    for name, dl in learn.dls.domains.items():
        features = encode_images(learn.model, dl.images())
        for shot in (5, 1):
            sampler = EpisodeSampler(dl.labels, N_WAY, shot, N_QUERY, seed=7)
            episodes = [sampler.episode(k) for k in range(n_episodes)]
            found = 100 * np.array([correct(learn, head, features[e.support], features[e.query]) for e in episodes])
            batch, alone, deployed = found.mean(0)
            difference = found[:, 2] - found[:, 0]
            rows.append(dict(method=method, domain=name, shot=shot, published=batch, one_at_a_time=alone, deployed=deployed,
                             difference=difference.mean(), ci95=ci95(difference)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--epochs', type=int, default=2)
    parser.add_argument('--episodes', type=int, default=60)
    parser.add_argument('--shot', type=int, default=5, help='of the training')
    parser.add_argument('--methods', nargs='*', default=['RelationNet', 'GNNNet'])
    args = parser.parse_args()
    warnings.filterwarnings('ignore', category=FutureWarning)
    torch.set_num_threads(1)
    folders: dict[str, Any] = dict(n_images=60, size=48, progress=False)
    dls = EpisodeDataLoaders.from_folder(untar_glyphs(**folders), size=SIZE, n_way=N_WAY, n_shot=args.shot, n_query=N_QUERY)
    dls.with_domains(untar_glyph_domains(['greek', 'cyrillic'], **folders))
    encoder, rows = None, []
    for method in args.methods:
        learn = trained(dls, method, encoder, args.epochs)
        encoder = learn.model.encoder
        rows += compare(learn, method, args.episodes)
    note('```\n' + pd.DataFrame(rows).round(1).to_string(index=False) + '\n```')


if __name__ == '__main__': main()
