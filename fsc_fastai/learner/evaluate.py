"Accuracy over test episodes, domain by domain, as the paper reports it"
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastcore.basics import chunked, patch
from fastprogress.fastprogress import progress_bar
from torch import Tensor

from ..adapt.base import Adaptation
from ..adapt.transduction import CANDIDATES, transductive_scores
from ..data.episode import EpisodeLabel
from ..data.loader import EpisodicDL
from ..data.manifest import images_hash
from ..data.sampler import Count, EpisodeIndices, EpisodeSampler, check_whole, count_text
from ..methods.base import FewShotModel
from ..methods.finite import REMEDY
from ..methods.head import Head
from ..tensors import evaluating
from .adapted import KeptEpisodes, adapted_accuracies, as_adaptations, weights_digest
from .core import FSCLearner
from .distributed import joined, own_part, share_of
from .metrics import ci95, episode_accuracy

__all__ = ['Protocol', 'PROTOCOLS', 'encode_images', 'episode_scores', 'worst_domain', 'compare']


@dataclass(frozen=True)
class Protocol:
    "How many episodes and queries a table rests on; printed with every table"
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
AT_ONCE_MB = 128 # Memory for the pairs of maps of the episodes that are classified together, on a CPU


@torch.no_grad()
def encode_images(
    model: FewShotModel, # Its encoder is used in eval mode, and left in the mode that it was in
    images: Iterable, # Batches whose first element is images `(bs, 3, H, W)`, such as `EpisodicDL.images()`
) -> Tensor:
    "Feature maps `(n_images, C, H, W)` of every image, each encoded once"
    with evaluating(model): return torch.cat([model.encode(batch[0]).as_subclass(Tensor) for batch in images])


def _episode_labels(classes: Sequence[int], n: int, device: torch.device) -> EpisodeLabel:
    "Labels 0…n_way−1, each `n` times in a row"
    return EpisodeLabel(torch.arange(len(classes), device=device).repeat_interleave(n), classes=tuple(classes))


@torch.no_grad()
def episode_scores(
    model: FewShotModel, # In eval mode
    features: Tensor, # Feature maps of every image `(n_images, C, H, W)`
    sampler: EpisodeSampler, # Draws the episodes
    n_episodes: int, # Episodes 0…n_episodes−1 of the sampler
    transductive: bool = False, # Let confident queries join the support set
    candidates: Sequence[int] = CANDIDATES, # How many join in each round
    at_once: int | None = None, # Episodes classified together; None: as many as `AT_ONCE_MB` allows
    share: tuple[int, int] = (0, 1), # Only the part of the episodes that is this rank's, of so many ranks
) -> Iterator[tuple[EpisodeIndices, Tensor, Tensor]]:
    """Episode by episode: its indices, the scores of its queries `(n_query, n_way)` and their labels `(n_query,)`.

    Episodes classified together keep to themselves, batch statistics included: their scores are those that they get one by
    one. A method that cannot be vectorised, or would score otherwise, is noticed on the first episodes and goes one by one;
    so do episodes that differ in their numbers of classes or images. Raises `ValueError` in training mode.
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


def _encode_domain(learn: FSCLearner, dl: EpisodicDL, bs: int = 64) -> Tensor:
    "Feature maps of every image of a domain; ranks encode whole batches each, so that they are those of one process"
    share, n = share_of(learn), len(dl.items)
    if share[1] == 1: return encode_images(learn.model, dl.images(bs))
    batches = own_part(-(-n // bs), share)
    own = dl.images(bs, idxs=range(n)[batches.start * bs:batches.stop * bs])
    if len(own): return joined(encode_images(learn.model, own), share)
    return joined(encode_images(learn.model, dl.images(bs, idxs=[0]))[:0], share)  # fewer batches than ranks


def _given(value: Any, default: Any) -> Any: return default if value is None else value


def _as_domains(learn: FSCLearner, domains: Any) -> dict[str, EpisodicDL]:
    "`domains` as named loaders: the learner's own, or made from paths and loaders"
    if domains is not None: return learn.dls.as_domains(domains)
    if learn.dls.domains: return learn.dls.domains
    raise ValueError('evaluate needs domains to test on: pass {name: folder}, or build the loaders with dls.with_domains(...)')


def _bar(learn: FSCLearner, named: dict[str, EpisodicDL]) -> Iterable[tuple[str, EpisodicDL]]:
    "The domains under a progress bar, unless the learner shows none (`with learn.no_bar()`)"
    return progress_bar(named.items(), total=len(named), leave=False) if hasattr(learn, 'progress') else named.items()


def _test_domains(learn, domains, n_episodes, n_way, n_shot, n_query, seed):
    "Domain by domain: name, loader and sampler"
    check_whole('n_episodes', n_episodes, least=1)
    named = _as_domains(learn, domains)
    for dl in named.values(): dl.check_distinct()
    samplers = {name: EpisodeSampler(dl.labels, n_way, n_shot, n_query, seed, dl.drop_small, dl.vocab, f'domain {name!r}')
                for name, dl in named.items()}
    for name, dl in _bar(learn, named): yield name, dl, samplers[name]


def _accuracies(learn: FSCLearner, model: Any, features: Tensor, sampler: EpisodeSampler, n_episodes: int, **kwargs) -> list:
    "Of every episode, as numbers; ranks share them out"
    tested = episode_scores(model, features, sampler, n_episodes, share=share_of(learn), **kwargs)
    found = [episode_accuracy(scores, y) for _, scores, y in tested]
    none = torch.zeros(0, device=learn.dls.device)  # a rank's share when there are fewer episodes than go together
    return joined(torch.stack(found) if found else none, share_of(learn)).tolist()


@patch
def evaluate(
    self: FSCLearner,
    domains: Any = None, # {name: folder, loaders or loader}, one of them, or None for `learn.dls.domains`
    *,
    n_episodes: int | None = None, # Test episodes a domain; None: as the protocol says
    n_way: Count | None = None, # Classes an episode, or a pair (lowest, highest); None: as in validation
    n_shot: Count | None = None, # Support images a class, likewise; None: as in validation
    n_query: Count | None = None, # Queries a class, likewise; None: as the protocol says
    protocol: str = 'paper', # A name in `PROTOCOLS`, for what is not given
    seed: int = 0, # The same seed draws the same episodes for every model, so that differences are paired
    transductive: bool = False, # Let confident queries join the support set
    candidates: Sequence[int] = CANDIDATES, # How many join in each round
    adapt: Any = None, # An adaptation to each support, or its name; or a list or dictionary of them, a row each
    resume: str | PathLike | None = None, # File to keep accuracies in, for adaptations on images: it is gone on with
) -> pd.DataFrame:
    """Accuracy on test episodes of each domain, with its 95 % confidence interval (±1.96·std/√n over the episodes).

    Returns a frame with a row a domain: domain, way, shot, n_episodes, n_query, accuracy, ci95, protocol, images (their hash,
    `images_hash`), and adapt where it was asked for. The accuracy of every episode is kept in its `attrs['episodes']`, which
    `compare` pairs. An adaptation on images encodes each episode anew, in all other cases each image is
    encoded once. Every part of the model is left in the mode that it was in. Raises `ValueError` for scores that are not finite.
    """
    if protocol not in PROTOCOLS: raise ValueError(f'protocol={protocol!r}: one of {", ".join(PROTOCOLS)}')
    default = PROTOCOLS[protocol]
    n_episodes, n_query = _given(n_episodes, default.n_episodes), _given(n_query, default.n_query)
    n_way, n_shot = _given(n_way, self.dls.valid.n_way), _given(n_shot, self.dls.valid.n_shot)
    adaptations = as_adaptations(adapt)
    if transductive and adapt is not None:
        raise ValueError('transductive=True and adapt=…: give one of both, adapt=SelfTraining() is the same')
    kept = KeptEpisodes(resume, dict(way=n_way, shot=n_shot, n_query=n_query, seed=seed, weights=weights_digest(self.model))
                        if resume else {})
    episodes: dict[str, dict[str, list[float]]] = {row: {} for row in adaptations}
    hashes = {}
    with evaluating(self.model):
        for name, dl, sampler in _test_domains(self, domains, n_episodes, n_way, n_shot, n_query, seed):
            hashes[name] = images_hash(dl)
            on_features = any(a is None or not a.on_images for a in adaptations.values())
            features = _encode_domain(self, dl) if on_features else torch.empty(0)
            for row, a in adaptations.items():
                if a is not None and a.on_images:
                    known = kept.of(f'{row}: {a} on {name} {hashes[name]}')
                    found = adapted_accuracies(self, dl, sampler, n_episodes, a, known, kept)
                else:
                    model = self.model if a is None else a(self.model)
                    found = _accuracies(self, model, features, sampler, n_episodes, transductive=transductive,
                                        candidates=candidates)
                if bad := np.isnan(found).sum():
                    raise ValueError(f'the scores of {bad} of {n_episodes} episodes of domain {name!r} are not finite: {REMEDY}')
                episodes[row][name] = found
    published = (n_episodes, n_query) == (default.n_episodes, default.n_query)
    label = protocol if published else f'{n_episodes}×{count_text(n_query)}'
    def said(a: Adaptation | None) -> str: return label + (' transductive' if transductive or a and a.transductive else '')
    table = pd.DataFrame([dict(domain=name, adapt=row, way=n_way, shot=n_shot, n_episodes=n_episodes, n_query=n_query,
                               accuracy=float(np.mean(accuracies)), ci95=ci95(accuracies), protocol=said(adaptations[row]),
                               images=hashes[name])
                          for row, of_domains in episodes.items() for name, accuracies in of_domains.items()])
    table.attrs['episodes'] = episodes if isinstance(adapt, Mapping | list | tuple) else next(iter(episodes.values()))
    return table.drop(columns='adapt') if adapt is None else table


@patch
def confusion(
    self: FSCLearner,
    domain: Any, # A name of `learn.dls.domains`, a folder, or a loader
    *,
    n_episodes: int = 500, # Test episodes
    n_way: int | None = None, # Classes an episode; None: as in validation
    n_shot: int | None = None, # Support images a class; None: as in validation
    n_query: int = 16, # Queries a class
    seed: int = 0, # Of the episodes
) -> pd.DataFrame:
    """How often a query of one class (row) was taken for another (column), over the episodes where both were to choose from.

    Rows and columns are the domain's classes; the diagonal is the accuracy by class; nan where two classes never met.
    Raises `ValueError` for several domains, and for scores that are not finite.
    """
    if isinstance(domain, str) and domain in self.dls.domains: domain = self.dls.domains[domain]
    n_way, n_shot = _given(n_way, self.dls.valid.n_way), _given(n_shot, self.dls.valid.n_shot)
    named = _as_domains(self, domain)
    if len(named) != 1: raise ValueError(f'confusion is of one domain, found {len(named)} ({", ".join(named)}): ask for each')
    (name, dl), = named.items()
    taken, offered = np.zeros((2, len(dl.vocab), len(dl.vocab)), dtype=np.int64)
    finite = 1
    with evaluating(self.model):
        (_, dl, sampler), = _test_domains(self, named, n_episodes, n_way, n_shot, n_query, seed)
        tested = episode_scores(self.model, _encode_domain(self, dl), sampler, n_episodes, share=share_of(self))
        for episode, scores, y in tested:
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
    domain: Any, # As in `confusion`
    **kwargs, # For `confusion`: n_episodes, n_way, n_shot, n_query, seed
) -> pd.Series:
    "How often a query of each class was classified right, the worst class first; nan for a class that no episode had"
    matrix = self.confusion(domain, **kwargs)
    return pd.Series(np.diag(matrix), index=matrix.index, name='accuracy').sort_values()


def worst_domain(
    results: pd.DataFrame, # From `learn.evaluate`
) -> pd.Series:
    "The row of the domain with the lowest accuracy: what a model that is taken somewhere new may come down to"
    return results.loc[results.accuracy.idxmin()]


def compare(
    results_a: pd.DataFrame, # From `learn.evaluate`
    results_b: pd.DataFrame | None = None, # From another `evaluate` on the same domains, seed and episodes; None: see below
) -> pd.DataFrame:
    """The paired difference b − a in each domain, with its 95 % interval over the episodes.

    Both were tested on the same episodes, so the noise of drawing them cancels. A table of several adaptations alone: each of
    them against the first. Raises `ValueError` when they were tested on other episodes.
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
    return pd.DataFrame([dict(domain=name, difference=d.mean(), ci95=ci95(d)) for name, d in differences.items()])


def _of_adaptation(table: pd.DataFrame, row: str) -> pd.DataFrame:
    "The rows of one adaptation, with their episodes"
    chosen = table[table.adapt == row]
    chosen.attrs = {'episodes': table.attrs['episodes'][row]}
    return chosen
