"Calibrated probabilities and a threshold for \"none of these\", from episodes of held-out classes"
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import numpy as np
import torch
from fastcore.basics import patch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ..data.sampler import EpisodeIndices, EpisodeSampler, check_whole
from ..methods.finite import finite_scores
from ..methods.head import Head
from .classifier import FewShotClassifier
from .held_out import best_temperature
from .support import labelled_items

__all__ = ['Calibration', 'measured']


@dataclass(frozen=True)
class Calibration:
    "The result of `calibrate`, over all its episodes"
    temperature: float # Scores are divided by it before they become probabilities
    threshold: float # An image whose largest probability is lower belongs to none of the classes
    accepted: float # Share of the images of known classes above the threshold
    refused: float # Share of the images of other classes below it
    auroc: float # Area under the ROC curve of the probability between known and other classes; 0.5 is chance
    accuracy: float # Accuracy on images of known classes, before any is refused


@patch
@torch.no_grad()
def calibrate(
    self: FewShotClassifier,
    items: Any, # Images of classes held out from training, or a folder with one folder of images per class
    labels: Sequence[Any] | None = None, # The class of each image; None: the names of the folders
    *,
    keep: float = 0.95, # Share of images of known classes above the threshold
    n_episodes: int = 100, # Episodes to draw
    n_way: int | None = None, # Known classes per episode; None: as many as the classifier has
    n_shot: int | None = None, # Examples per class; None: the median of the classifier's
    n_query: int = 5, # Queries of each known and each unknown class
    seed: int = 0, # Seed of the episodes
) -> Calibration:
    """Choose `temperature` and `reject` by episodes that resemble the use of the classifier.

    Each episode has `n_way` known classes and up to as many others, whose images should be rejected. The temperature minimises
    the cross entropy of the known classes (Guo et al. 2017, section 4.2). Raises `ValueError` for fewer than `n_way` + 1 classes,
    for classes with fewer than `n_shot` + `n_query` images, and for scores that are not finite.
    """
    if not 0 < keep < 1: raise ValueError(f'keep={keep}: wanted a share between 0 and 1')
    items, named = labelled_items(items, labels)
    vocab = sorted(set(named)) # type: ignore[type-var]
    check_whole('n_episodes', n_episodes, least=1)
    if n_way is None: n_way = len(self.support.classes) if self.fitted else int(np.max(self.model.n_way))
    check_whole('n_way', n_way, least=1)  # a threshold is for one number of classes: with more, all probabilities are lower
    if n_shot is None: n_shot = median_low(self.shots_.values()) if self.fitted else 5
    if len(vocab) <= n_way:
        raise ValueError(f'{n_way} known classes and another one at least are needed, found {len(vocab)} in all: '
                         'bring images of more classes, or set n_way. The examples alone need no others: `fit` calibrates by '
                         'them, and keep= refuses what is strange')
    sampler = EpisodeSampler([vocab.index(o) for o in named], min(2 * n_way, len(vocab)), n_shot, n_query, seed, vocab=vocab)
    head = self.model.head(statistics='support')
    if problem := head.problem(n_way): raise ValueError(problem)
    features = torch.cat([head.compact(self.encode(o)) for o in self.preprocess.batches(items)])
    tested = [_episode_scores(head, features, sampler.episode(k), n_way) for k in range(n_episodes)]
    known, other = (finite_scores(torch.cat(scores), 'the episodes').cpu().double() for scores in zip(*tested))
    target = torch.arange(n_way).repeat_interleave(n_query).repeat(n_episodes)
    # as in Platt's scaling the labels count as not quite certain: else a perfect separation would ask for temperature 0
    self.temperature = best_temperature(known, target, n_way / (len(target) + 2))
    self.calibrated_ = 'other classes'
    found = measured(known, other, target, self.temperature, keep)
    self.reject = found.threshold
    return found


def _episode_scores(
    head: Head, features: Tensor, episode: EpisodeIndices, n_way: int,
) -> tuple[Tensor, Tensor]:
    "Scores of an episode's queries, of its first `n_way` classes and of the others, against the first `n_way` classes"
    n_shot, n_query = (len(idxs) // len(episode.classes) for idxs in (episode.support, episode.query))
    member = torch.eye(n_way).repeat_interleave(n_shot, 0).to(features)
    head.fit(features[episode.support[:n_way * n_shot]], member)
    return head(features[episode.query]).split([n_way * n_query, (len(episode.classes) - n_way) * n_query])


def measured(
    known: Tensor, # Scores of images of known classes `(n, n_way)`
    other: Tensor, # Scores of images of other classes `(m, n_way)`
    target: Tensor, # True classes of the known images `(n,)`
    temperature: float, # Divisor of the scores
    keep: float, # Share of images of known classes above the threshold
) -> Calibration:
    "The `Calibration` of these scores with a temperature, and the threshold that keeps a share of known images"
    p_known, p_other = ((scores / temperature).softmax(1).amax(1).numpy() for scores in (known, other))
    threshold = float(np.quantile(p_known, 1 - keep))
    is_known = np.repeat([1, 0], [len(p_known), len(p_other)])
    return Calibration(temperature, threshold, accepted=float((p_known >= threshold).mean()),
                       refused=float((p_other < threshold).mean()),
                       auroc=float(roc_auc_score(is_known, np.concatenate([p_known, p_other]))),
                       accuracy=(known.argmax(1) == target).double().mean().item())
