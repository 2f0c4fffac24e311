"Evaluation with an encoder that is adapted to each support: one episode at a time, with progress bar, resumable"
from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from os import PathLike
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from ..adapt.base import Adaptation, as_adaptation
from ..bars import Bar
from ..data.episode import EpisodeLabel
from ..data.episode_loader import EpisodicDL
from ..data.sampler import EpisodeSampler
from ..files import atomic_write
from .distributed import joined, own_part, share_of
from .learner import FSCLearner
from .metrics import episode_accuracy

__all__ = ['as_adaptations', 'adapted_accuracies', 'adapted_episodes', 'KeptEpisodes', 'weights_digest', 'episode_images']

SECONDS = 5 # Least time between two writes of the file


def as_adaptations(
    adapt: Any, # None, an adaptation or its name, or a list or dictionary of these
) -> dict[str, Any]:
    "Adaptations by the name of their row; None is the model without one. Raises `ValueError` for two of the same name"
    if isinstance(adapt, Mapping): return {str(k): as_adaptation(v) for k, v in adapt.items()}
    found = [as_adaptation(o) for o in (adapt if isinstance(adapt, list | tuple) else [adapt])]
    names = ['none' if o is None else o.name for o in found]
    if len(set(names)) < len(names):
        raise ValueError(f'adapt=[{", ".join(names)}]: two rows of one name, give a dictionary {{name: adaptation}}')
    return dict(zip(names, found))


class KeptEpisodes:
    "Accuracies of episodes in a JSON file, from which an interrupted run continues"
    def __init__(self,
        path: str | PathLike | None, # The file; None: keep nothing
        made_with: Mapping[str, Any], # Plain values that the accuracies depend on, besides domain and adaptation
    ):
        self.path, self.made_with, self.runs = path and Path(path), dict(made_with), {}
        self.written = monotonic()
        if not self.path or not self.path.exists(): return
        try: kept = json.loads(self.path.read_text(encoding='utf-8'))
        except ValueError as e: raise ValueError(f'resume={self.path}: no file of `evaluate` ({e})') from e
        if other := [k for k, v in self.made_with.items() if kept.get('made_with', {}).get(k) != v]:
            raise ValueError(f'resume={self.path}: it was made with other {", ".join(other)}: use another file')
        self.runs = kept['runs']

    def of(self,
        run: str, # Adaptation and domain
    ) -> list[float]:
        "The accuracies of a run so far, from its first episode on"
        return self.runs.setdefault(run, [])

    def write(self, now: bool = True) -> None:
        "Write the file, unless it was written a few seconds ago and `now` is False"
        if not self.path or not now and monotonic() < self.written + SECONDS: return
        with atomic_write(self.path) as part: part.write_text(json.dumps(dict(made_with=self.made_with, runs=self.runs)))
        self.written = monotonic()


def weights_digest(model: nn.Module) -> str:
    "A hash of the weights"
    digest = sha256()
    for t in model.state_dict().values(): digest.update(t.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def episode_images(dl: EpisodicDL, sampler: EpisodeSampler, k: int) -> tuple[Tensor, EpisodeLabel, Tensor, Tensor]:
    "Support images and labels, query images and labels of one episode"
    episode = sampler.episode(k)
    batches = dl.images(64, idxs=[*episode.support, *episode.query], num_workers=0)
    x = torch.cat([batch[0].as_subclass(Tensor) for batch in batches])
    n = len(episode.support)
    way = torch.arange(len(episode.classes), device=x.device)
    support_y, query_y = (way.repeat_interleave(m // len(way)) for m in (n, len(x) - n))
    return x[:n], EpisodeLabel(support_y, classes=tuple(episode.classes)), x[n:], query_y


def adapted_episodes(
    learn: FSCLearner, # A learner whose model is in eval mode; it does not change
    dl: EpisodicDL, # Loader of the domain
    sampler: EpisodeSampler, # Draws the episodes
    episodes: Iterable[int], # Numbers of the episodes
    adapt: Adaptation, # An adaptation on images
) -> Iterator[Tensor]:
    "Yield the accuracy of each episode after adaptation to its support, which does not see labels of queries"
    for k in episodes:
        support_x, support_y, query_x, query_y = episode_images(dl, sampler, k)
        adapted = adapt(learn.model, support_x, support_y, query_x if adapt.transductive else None)
        with torch.no_grad(): yield episode_accuracy(adapted(support_x, support_y, query_x), query_y)


def adapted_accuracies(
    learn: FSCLearner, # A learner whose model is in eval mode; it does not change
    dl: EpisodicDL, # Loader of the domain
    sampler: EpisodeSampler, # Draws the episodes
    n_episodes: int, # Episodes 0…n_episodes−1 of the sampler
    adapt: Adaptation, # An adaptation on images
    known: list[float], # Accuracies of the first episodes, which are not computed again; grows in a single process
    kept: KeptEpisodes, # The file that `known` comes from
    bar: Bar, # Progress bar, which advances by `n_episodes`
) -> list[float]:
    "The accuracy of every episode `(n_episodes,)`; ranks share the work"
    share = share_of(learn)
    if share[1] > 1:
        own = bar.through(range(n_episodes)[own_part(n_episodes, share)], each=share[1], worth=n_episodes)
        found = list(adapted_episodes(learn, dl, sampler, own, adapt))
        return joined(torch.stack(found) if found else torch.zeros(0, device=learn.dls.device), share).tolist()
    try:
        left = bar.through(range(len(known), n_episodes), worth=n_episodes)
        for accuracy in adapted_episodes(learn, dl, sampler, left, adapt):
            known.append(float(accuracy))
            kept.write(now=False)
    finally: kept.write()
    return known[:n_episodes]
