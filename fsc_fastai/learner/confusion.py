"The confusion of a domain's classes over test episodes"
from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from fastcore.basics import patch

from ..bars import Bar
from ..methods.finite import REMEDY
from ..tensors import evaluating
from .distributed import joined, share_of
from .episode_scores import episode_scores
from .learner import FSCLearner
from .tested import encode_domain, named_domains, tested_domains

__all__: list[str] = []


@patch
def confusion(
    self: FSCLearner,
    domain: Any, # A name of `learn.dls.domains`, a folder, or a loader
    *,
    n_episodes: int = 500, # Test episodes
    n_way: int | None = None, # Classes per episode; None: as in validation
    n_shot: int | None = None, # Support images per class; None: as in validation
    n_query: int = 16, # Queries per class
    seed: int = 0, # Seed of the episodes
) -> pd.DataFrame:
    """How often a query of one class (row) was classified as another (column), among the episodes that had both classes.

    Rows and columns are the domain's classes. The diagonal is the accuracy per class; nan marks classes that never met.
    Raises `ValueError` for several domains, and for scores that are not finite.
    """
    if isinstance(domain, str) and domain in self.dls.domains: domain = self.dls.domains[domain]
    named = named_domains(self, domain)
    if len(named) != 1: raise ValueError(f'confusion is of one domain, found {len(named)} ({", ".join(named)}): ask for each')
    (name, dl), = named.items()
    taken, offered = np.zeros((2, len(dl.vocab), len(dl.vocab)), dtype=np.int64)
    finite = 1
    with evaluating(self.model):
        (_, dl, sampler), = tested_domains(self, named, n_episodes, n_way, n_shot, n_query, seed)
        bar = Bar(len(dl.items) + n_episodes, hasattr(self, 'progress'), name)
        tested = episode_scores(self.model, encode_domain(self, dl, bar), sampler, n_episodes, share=share_of(self))
        for episode, scores, y in bar.through(tested, each=share_of(self)[1], worth=n_episodes):
            classes = np.array(episode.classes)
            np.add.at(taken, (classes[y.cpu()], classes[scores.argmax(1).cpu()]), 1)
            offered[np.ix_(classes, classes)] += len(episode.query) // len(classes)
            finite = min(finite, int(scores.isfinite().all()))
    # asked of all ranks, so that an error is one of all
    if not joined(torch.tensor([finite], device=self.dls.device), share_of(self)).all():
        raise ValueError(f'scores of domain {name!r} are not finite: {REMEDY}')
    taken, offered = (joined(torch.tensor(o, device=self.dls.device)[None], share_of(self)).sum(0).cpu().numpy()
                      for o in (taken, offered))
    seen = sorted(set(dl.labels))
    share = np.divide(taken, offered, out=np.full(taken.shape, np.nan), where=offered > 0)[np.ix_(seen, seen)]
    names = [dl.vocab[i] for i in seen]
    return pd.DataFrame(share, index=names, columns=names)


@patch
def accuracy_by_class(
    self: FSCLearner,
    domain: Any, # Domain as for `confusion`
    **kwargs, # For `confusion`: n_episodes, n_way, n_shot, n_query, seed
) -> pd.Series:
    "The accuracy of each class, the lowest first; nan for a class that was in no episode"
    matrix = self.confusion(domain, **kwargs)
    return pd.Series(np.diag(matrix), index=matrix.index, name='accuracy').sort_values()
