"Accuracy over test episodes, domain by domain, as the paper reports it"
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastcore.basics import patch
from torch import Tensor

from ..adapt.base import Adaptation
from ..adapt.transduction import CANDIDATES
from ..bars import Bar
from ..data.manifest import images_hash
from ..data.sampler import Count, EpisodeSampler, count_text
from ..methods.finite import REMEDY
from ..tensors import evaluating
from .adapted import KeptEpisodes, adapted_accuracies, as_adaptations, weights_digest
from .distributed import joined, share_of
from .episode_scores import episode_scores
from .learner import FSCLearner
from .metrics import ci95, episode_accuracy
from .results import Accuracies
from .tested import encode_domain, tested_domains

__all__ = ['Protocol', 'PROTOCOLS', 'worst_domain', 'compare']


@dataclass(frozen=True)
class Protocol:
    "Numbers of episodes and queries of an evaluation, printed with every table"
    name: str
    n_episodes: int
    n_query: int


PROTOCOLS = {p.name: p for p in (
    Protocol('paper', 2000, 16),        # Sun et al. 2020, section IV-A
    Protocol('paper-code', 2000, 15),   # its released code for RN and GNN
    Protocol('fwt', 1000, 15),          # Tseng et al. 2020
    Protocol('can', 2000, 15),          # Hou et al. 2019
    Protocol('bscd', 600, 15),          # Guo et al. 2020: 5, 20 and 50 shots, later work 1 and 5
)}
def _accuracies(
    learn: FSCLearner, model: Any, features: Tensor, sampler: EpisodeSampler, n_episodes: int, bar: Bar, **kwargs,
) -> list:
    "Of every episode, as numbers; ranks share them out"
    tested = episode_scores(model, features, sampler, n_episodes, share=share_of(learn), **kwargs)
    found = [episode_accuracy(scores, y) for _, scores, y in bar.through(tested, each=share_of(learn)[1], worth=n_episodes)]
    none = torch.zeros(0, device=learn.dls.device)  # a rank's share when there are fewer episodes than go together
    return joined(torch.stack(found) if found else none, share_of(learn)).tolist()


@patch
def evaluate(
    self: FSCLearner,
    domains: Any = None, # {name: folder, loaders or loader}, one of them, or None for `learn.dls.domains`
    *,
    n_episodes: int | None = None, # Test episodes per domain; None: as in the protocol
    n_way: Count | None = None, # Classes per episode, or a pair (lowest, highest); None: as in validation
    n_shot: Count | None = None, # Support images per class, likewise; None: as in validation
    n_query: Count | None = None, # Queries per class, likewise; None: as in the protocol
    protocol: str = 'paper', # A name in `PROTOCOLS`, which sets numbers that are not given
    seed: int = 0, # Seed of the episodes, which are the same for every model
    transductive: bool = False, # Let confident queries join the support set
    candidates: Sequence[int] = CANDIDATES, # Queries that join in each round
    adapt: Any = None, # An adaptation to each support, or its name; or a list or dictionary of them, one row each
    resume: str | PathLike | None = None, # File of accuracies with adaptations on images, from which a run continues
) -> pd.DataFrame:
    """Accuracy on test episodes of each domain, with its 95 % confidence interval (±1.96·std/√n over the episodes).

    Returns a frame with one row per domain, displayed in percent: domain, way, shot, n_episodes, n_query, accuracy, ci95,
    protocol, images (a hash, see `images_hash`), and adapt if it is given. `attrs['episodes']` has the accuracy of every episode,
    which `compare` pairs. Each image is encoded once, except with an adaptation on images. The modes of the model's parts do not
    change. Raises `ValueError` for scores that are not finite.

        learn.evaluate({'birds': 'birds/test'}, n_shot=1, adapt='ridge')
    """
    if protocol not in PROTOCOLS: raise ValueError(f'protocol={protocol!r}: one of {", ".join(PROTOCOLS)}')
    default = PROTOCOLS[protocol]
    n_episodes = default.n_episodes if n_episodes is None else n_episodes
    n_query = default.n_query if n_query is None else n_query
    n_way = self.dls.valid.n_way if n_way is None else n_way
    n_shot = self.dls.valid.n_shot if n_shot is None else n_shot
    adaptations = as_adaptations(adapt)
    if transductive and adapt is not None:
        raise ValueError('transductive=True and adapt=…: give one of both, adapt=SelfTraining() is the same')
    kept = KeptEpisodes(resume, dict(way=n_way, shot=n_shot, n_query=n_query, seed=seed, weights=weights_digest(self.model))
                        if resume else {})
    episodes: dict[str, dict[str, list[float]]] = {row: {} for row in adaptations}
    hashes = {}
    tested = tested_domains(self, domains, n_episodes, n_way, n_shot, n_query, seed)
    on_features = any(a is None or not a.on_images for a in adaptations.values())
    steps = sum(len(dl.items) * on_features + n_episodes * len(adaptations) for _, dl, _ in tested)
    bar = Bar(steps, hasattr(self, 'progress'))  # which `with learn.no_bar()` takes away
    with evaluating(self.model):
        for name, dl, sampler in tested:
            bar.comment, hashes[name] = name, images_hash(dl)
            features = encode_domain(self, dl, bar) if on_features else torch.empty(0)
            for row, a in adaptations.items():
                if a is not None and a.on_images:
                    known = kept.of(f'{row}: {a} on {name} {hashes[name]}')
                    found = adapted_accuracies(self, dl, sampler, n_episodes, a, known, kept, bar)
                else:
                    model = self.model if a is None else a(self.model)
                    found = _accuracies(self, model, features, sampler, n_episodes, bar, transductive=transductive,
                                        candidates=candidates)
                if bad := np.isnan(found).sum():
                    raise ValueError(f'the scores of {bad} of {n_episodes} episodes of domain {name!r} are not finite: {REMEDY}')
                episodes[row][name] = found
    published = (n_episodes, n_query) == (default.n_episodes, default.n_query)
    label = protocol if published else f'{n_episodes}×{count_text(n_query)}'
    def said(a: Adaptation | None) -> str: return label + (' transductive' if transductive or a and a.transductive else '')
    table = Accuracies([dict(domain=name, adapt=row, way=n_way, shot=n_shot, n_episodes=n_episodes, n_query=n_query,
                              accuracy=float(np.mean(accuracies)), ci95=ci95(accuracies), protocol=said(adaptations[row]),
                              images=hashes[name])
                         for row, of_domains in episodes.items() for name, accuracies in of_domains.items()])
    table.attrs['episodes'] = episodes if isinstance(adapt, Mapping | list | tuple) else next(iter(episodes.values()))
    return table.drop(columns='adapt') if adapt is None else table


def worst_domain(
    results: pd.DataFrame, # A table of `learn.evaluate`
) -> pd.Series:
    "The row of the domain with the lowest accuracy"
    return results.loc[results.accuracy.idxmin()]


def compare(
    results_a: pd.DataFrame, # A table of `learn.evaluate`
    results_b: pd.DataFrame | None = None, # Another table on the same domains and episodes; None: see below
) -> pd.DataFrame:
    """The paired difference b − a in each domain, with its 95 % interval over the episodes.

    Both tables are of the same episodes, so the noise of drawing episodes cancels. With one table of several adaptations, each
    is compared with the first. Raises `ValueError` if the episodes differ.
    """
    if results_b is None:
        first, *others = (_of_adaptation(results_a, row) for row in results_a.get('adapt', pd.Series()).unique())
        return pd.concat([compare(first, b).assign(adapt=b.adapt.iloc[0]) for b in others], ignore_index=True)
    a, b = results_a.attrs.get('episodes'), results_b.attrs.get('episodes')
    if not a or not b: raise ValueError('compare needs tables as `learn.evaluate` returned them: one has lost attrs["episodes"]')
    settings = ['domain', 'way', 'shot', 'n_episodes', 'n_query', 'images']
    if results_a[settings].values.tolist() != results_b[settings].values.tolist():
        raise ValueError(f'compare pairs the same episodes, but the tables differ in {", ".join(settings)}:\n'
                         f'{results_a[settings]}\n{results_b[settings]}')
    differences = {name: np.subtract(b[name], a[name]) for name in results_a.domain}
    return Accuracies([dict(domain=name, difference=d.mean(), ci95=ci95(d)) for name, d in differences.items()])


def _of_adaptation(table: pd.DataFrame, row: str) -> pd.DataFrame:
    "The rows of one adaptation, with their episodes"
    chosen = table[table.adapt == row]
    chosen.attrs = {'episodes': table.attrs['episodes'][row]}
    return chosen
