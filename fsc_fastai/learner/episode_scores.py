"Scores of test episodes from feature maps, for which each image is encoded once"
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from fastcore.basics import chunked
from torch import Tensor

from ..adapt.transduction import CANDIDATES, transductive_scores
from ..data.episode import EpisodeLabel
from ..data.sampler import EpisodeIndices, EpisodeSampler
from ..methods.base import FewShotModel
from ..methods.head import Head
from ..tensors import evaluating
from .distributed import own_part

__all__ = ['encode_images', 'episode_scores']

AT_ONCE_MB = 128 # Memory of the pairs of maps in episodes that a CPU classifies together


@torch.no_grad()
def encode_images(
    model: FewShotModel, # A model, whose encoder is used in eval mode and then set back to its mode
    images: Iterable, # Batches whose first element is images `(bs, 3, H, W)`, such as `EpisodicDL.images()`
) -> Tensor:
    "Feature maps of all images `(n_images, C, H, W)`"
    with evaluating(model): return torch.cat([model.encode(batch[0]).as_subclass(Tensor) for batch in images])


def _episode_labels(classes: Sequence[int], n: int, device: torch.device) -> EpisodeLabel:
    "Labels 0…n_way−1, each `n` times in a row"
    return EpisodeLabel(torch.arange(len(classes), device=device).repeat_interleave(n), classes=tuple(classes))


@torch.no_grad()
def episode_scores(
    model: FewShotModel, # A model in eval mode
    features: Tensor, # Feature maps of every image `(n_images, C, H, W)`
    sampler: EpisodeSampler, # Draws the episodes
    n_episodes: int, # Episodes 0…n_episodes−1 of the sampler
    transductive: bool = False, # Let confident queries join the support set
    candidates: Sequence[int] = CANDIDATES, # Queries that join in each round
    at_once: int | None = None, # Episodes classified together; None: as many as `AT_ONCE_MB` allows
    share: tuple[int, int] = (0, 1), # This rank and the number of ranks, which share the episodes
) -> Iterator[tuple[EpisodeIndices, Tensor, Tensor]]:
    """Yield for each episode its indices, the scores of its queries `(n_query, n_way)` and their labels `(n_query,)`.

    Several episodes are classified together, with the same scores as one by one, including batch statistics. This is checked on
    the first episodes; a method that cannot be vectorised is run one by one, and so are episodes of different sizes. Raises
    `ValueError` in training mode.
    """
    if getattr(model, 'training', False): raise ValueError('episode_scores in training mode: call model.eval() before')
    first = [sampler.episode(k) for k in range(min(2, n_episodes))]
    n_images = len(first[0].support) + len(first[0].query)
    head = model.head()
    if n_images * n_episodes > len(features): features = head.compact(features)

    def classify(f_support: Tensor, f_query: Tensor, n_way: int = len(first[0].classes)) -> Tensor:
        support_y = _episode_labels(range(n_way), f_support.shape[0] // n_way, features.device)
        if transductive: return transductive_scores(head, f_support, support_y, f_query, candidates)
        return head.fit(f_support, support_y)(f_query)

    def classify_all(f_support: Tensor, f_query: Tensor) -> Tensor:
        of_many = getattr(model, 'forward_episodes', None)
        if of_many is None or transductive: return torch.vmap(classify)(f_support, f_query)
        n_way = len(first[0].classes)
        return of_many(f_support, _episode_labels(range(n_way), f_support.shape[1] // n_way, features.device), f_query)

    def maps_of(episodes: Sequence[EpisodeIndices]) -> tuple[Tensor, Tensor]:
        support, query = (torch.tensor(idxs, device=features.device) for idxs in
                          ([e.support for e in episodes], [e.query for e in episodes]))
        return features[support], features[query]

    if sampler.varies: at_once = 1
    elif at_once is None: at_once = _episodes_at_once(head, *maps_of(first[:1]))
    if at_once > 1 and not _vectorises(classify, classify_all, *maps_of(first)): at_once = 1
    together = list(chunked(range(n_episodes), at_once))
    for ks in together[own_part(len(together), share)]:
        episodes = [sampler.episode(k) for k in ks]
        maps = maps_of(episodes)
        scores = classify_all(*maps) if len(ks) > 1 else [classify(maps[0][0], maps[1][0], len(episodes[0].classes))]
        for episode, s in zip(episodes, scores):
            n_query = len(episode.query) // len(episode.classes)
            yield episode, s, _episode_labels(episode.classes, n_query, s.device).as_subclass(Tensor)


def _episodes_at_once(head: Head, f_support: Tensor, f_query: Tensor) -> int:
    "How many episodes to classify together, by the memory that their pairs of maps take (one episode of maps is given)"
    if f_query.is_cpu and not head.together: return 1
    # on a GPU a sixteenth of what is free, as what becomes of the pairs takes several times their memory
    room = torch.cuda.mem_get_info(f_query.device)[0] // 16 if f_query.is_cuda else AT_ONCE_MB * 2**20
    pairs = f_query[0].numel() * f_query.element_size() * max(2 * f_support.shape[1], 1)
    return max(1, min(64, room // pairs))


def _vectorises(classify: Callable, classify_all: Callable, f_support: Tensor, f_query: Tensor) -> bool:
    "Whether these episodes get the same scores together as one by one"
    try: together = classify_all(f_support, f_query)
    except RuntimeError: return False  # an operation that knows no batches, or a decision that depends on values
    return torch.allclose(together, torch.stack([classify(*maps) for maps in zip(f_support, f_query)]), rtol=1e-4, atol=1e-5)
