"`learn.faithfulness`: explainers compared by how scores change when the pixels that they find relevant are removed"
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from fastcore.basics import patch
from matplotlib.figure import Figure
from torch import Tensor

from ..bars import Bar
from ..data.sampler import Count
from ..drawing import no_math
from ..explain.faithfulness import Curves, area, removal_curves
from ..explain.map_quality import grid_energy, points_at, relevance_mass
from ..explain.mosaics import mosaics
from ..explain.randomisation import randomisation
from ..explain.removal import Replace
from ..explain.to_pixels import explain_images
from ..tensors import evaluating
from .adapted import episode_images
from .learner import FSCLearner
from .masks import Masks, seen_masks
from .metrics import ci95
from .tested import tested_domains

__all__ = ['plot_removal']

Measures = dict[tuple[str, str, Any, str], float] # side, measure, patch, replace: the mean over the queries of an episode


def _clock() -> float:
    "On a CPU the time that the process ran, which other processes do not lengthen"
    if not torch.cuda.is_available(): return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class ExplainedEpisode:
    """An episode whose support has fixed the statistics, so that the score of an image is its own.

    The score that is followed is the probability of the class that the model answers, or for mosaics of the true one.
    """
    mask: Tensor | None = None # Where the object of each query is `(n, height, width)`

    def __init__(self, model: Any, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor):
        self.support_x, self.support_y, self.query_x, self.query_y = support_x, support_y.as_subclass(Tensor), query_x, query_y
        with torch.no_grad(): self.f_support = model.encode(support_x)
        self.head = model.head(self.f_support, self.support_y, statistics='support')
        self.model = self.head.model
        with torch.no_grad(): self.f_query = self.model.encode(query_x)
        self.answer = self.head(self.f_query).argmax(1)
        self.each = torch.arange(len(query_x), device=query_x.device)
        self.random: dict[tuple, Tensor] = {} # Curves in random order, which all explainers share
        self.members = torch.stack([(self.support_y == c).nonzero()[:, 0] for c in self.answer])

    def of_queries(self, x: Tensor) -> Tensor:
        "Probabilities of the answers for other queries, or several times as many"
        return self._of_answers(self.head(self.model.encode(x)))

    def of_support(self, x: Tensor) -> Tensor:
        "Probabilities of the answers with other support images of their classes `(n, n_shot, channels, height, width)`"
        f = self.model.encode(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        def scores(k: int) -> Tensor:
            i = k % len(self.each)
            f_support = self.f_support.index_copy(0, self.members[i], f[k])
            return self.model.forward_head(f_support, self.support_y, self.f_query[i:i + 1])
        return self._of_answers(torch.cat([scores(k) for k in range(len(x))]))

    def _of_answers(self, scores: Tensor) -> Tensor:
        times = len(scores) // len(self.each)
        return scores.softmax(1)[torch.arange(len(scores)), self.answer.repeat(times)]

    def maps(self, explainer: Any, support: bool, model: Any = None) -> tuple[Tensor, Tensor | None]:
        "Heatmaps of the answers: of the queries `(n, height, width)`, and of their support `(n, n_shot, height, width)`"
        R = explain_images(self.model if model is None else model, self.support_x, self.support_y, self.query_x, explainer,
                           support, sum_channels=True, classes=self.answer[:, None])
        of_support = None if R.support is None else R.support[self.each[:, None], 0, self.members, 0]
        return R.query[:, 0, 0], of_support

    def pass_seconds(self) -> float:
        "What a forward pass of the episode takes"
        start = _clock()
        with torch.no_grad(): self.model(self.support_x, self.support_y, self.query_x)
        return _clock() - start


def _removal(curves: Curves, of: tuple[str, Any, str], found: Measures) -> None:
    "The areas of one way to remove patches"
    side, patch, replace = of
    forward, reverse, random = (float(area(curve).mean()) for curve in curves)
    for measure, value in (('deletion', forward), ('insertion', reverse), ('random', random), ('gap', reverse - forward)):
        found[side, measure, patch, replace] = value


def _within(heat: Tensor, mask: Tensor, found: Measures) -> None:
    "Localisation by masks; a query whose object was cut off tells nothing"
    seen = mask.any(2).any(1)
    if not seen.any(): return
    heat, mask = heat[seen], mask[seen]
    found['query', 'mask mass', None, ''] = float(relevance_mass(heat, mask).nan_to_num().mean())
    found['query', 'mask pointing', None, ''] = float(points_at(heat, mask).mean())
    found['query', 'mask area', None, ''] = float(mask.float().mean())


def _measured(
    episode: ExplainedEpisode, explainer: Any, seed: int, curves: dict,
    *, patches: Sequence[int], replace: Sequence[Replace], steps: int, support: bool, period: int,
) -> Measures:
    "All measures of an explainer on an episode, see `faithfulness`; `curves` collects the curves"
    found: Measures = {}
    of_query, of_support = episode.maps(explainer, support)
    sides: list[tuple[str, Any, Tensor, Tensor]] = [('query', episode.of_queries, episode.query_x, of_query)]
    if of_support is not None:
        sides.append(('support', episode.of_support, episode.support_x[episode.members], of_support))
    for side, score, x, heat in sides:
        for way in product(patches, replace):
            at = removal_curves(score, x, heat, way[0], steps, way[1], seed, episode.random.get((side, *way)))
            episode.random[(side, *way)] = at.random
            curves.setdefault((side, *way), []).append(torch.stack(at).mean(1).cpu().numpy())
            _removal(at, (side, *way), found)
        found[side, 'gap', None, 'all'] = float(np.mean([v for (s, m, *_), v in found.items() if s == side and m == 'gap']))
    found['query', 'grid', None, ''] = float(grid_energy(of_query, period).nan_to_num().mean())
    if episode.mask is not None: _within(of_query, episode.mask, found)
    pictures, mask = mosaics(episode.query_x, episode.query_y, seed)
    start = _clock()
    R = explain_images(episode.model, episode.support_x, episode.support_y, pictures, explainer, support=False, sum_channels=True,
                       classes=episode.query_y[:, None])
    seconds = _clock() - start
    on_mosaic = R.query[:, 0, 0]
    found['query', 'mass', None, ''] = float(relevance_mass(on_mosaic, mask).nan_to_num().mean())
    found['query', 'pointing', None, ''] = float(points_at(on_mosaic, mask).mean())
    found['query', 'passes', None, ''] = seconds / episode.pass_seconds()
    return found


@patch
def faithfulness(
    self: FSCLearner,
    explainers: Mapping[str, Any], # {name: explainer}, as `learn.explain` takes them; None is its default
    domains: Any = None, # As in `learn.evaluate`; None: the validation classes
    *,
    n_episodes: int = 30, # Episodes per domain
    n_way: Count | None = None, # Classes per episode; None: as in validation
    n_shot: Count | None = None, # Support images per class; None: as in validation
    n_query: Count = 1, # Queries per class
    patches: Sequence[int] = (4, 8), # Sides of the patches that are removed, in pixels; 1: pixels
    replace: Sequence[Replace] = ('mean', 'blur', 'noise'), # Values of removed patches
    steps: int = 8, # Equal steps from no patch to all
    support: bool = False, # Also remove patches of the support images of the predicted class
    masks: Masks | Mapping[str, Masks] | None = None, # Where objects are: see below
    period: int = 8, # Period of the grid to look for, a product of the first strides
    n_randomised: int = 1, # Episodes on which weights are shuffled; 0: none
    reference: str | None = None, # Explainer that the others are compared with; None: the first
    seed: int = 0, # Seed of episodes, random orders and noise, which are the same for all explainers
) -> pd.DataFrame:
    """How faithful explanations are to the model, for several explainers on the same episodes and queries.

    A query is explained for its predicted class, whose probability is followed while patches are removed. There is one row per
    domain, explainer, side ('query', 'support'), measure, patch and replaced_by, with `value` ± `ci95` over the episodes, and the
    paired `difference` ± `difference_ci95` to the reference. The measures are:

    | | |
    |---|---|
    | deletion | area under the curve, the most relevant patch first: lower is better |
    | insertion | the same, the least relevant first, which is insertion read backwards: higher is better |
    | random | the same in a random order, as a reference |
    | gap | insertion − deletion, the one number to choose by; replaced_by 'all' is the mean of all patches and replacements |
    | mass | localisation on `mosaics`: the share of the positive relevance in the quarter with the class; chance is 0.25 |
    | pointing | the share of the maps whose maximum is in this quarter |
    | mask mass, mask pointing | the same for each query itself, within the mask of its object |
    | mask area | the object's share of the image, the chance level of both |
    | grid | share of the map's energy that is a grid of the strides (`grid_energy`): lower is better |
    | randomised, ssim | similarity to the map after all weights were shuffled (`randomisation`): lower is better |
    | passes | time to explain a class, in forward passes of the episode |

    `masks` is a folder with `class/name.png` for an image `class/name.jpg`, or a function that maps the file of an image to a
    mask: a file, picture or array of the size of the image, where the object is not black. {domain: masks} if domains differ.

    `attrs['curves']` has the mean curves, which `plot_removal` draws, `attrs['episodes']` the values of each episode, and
    `attrs['randomisation']` the similarity layer by layer. Raises `ValueError` without explainers, for an unknown reference, and
    for masks that do not fit; `FileNotFoundError` for a missing mask.
    """
    if not explainers: raise ValueError('no explainers to compare: give {name: explainer}')
    names = list(explainers)
    reference = names[0] if reference is None else reference
    if reference not in explainers: raise ValueError(f'reference={reference!r}: one of {", ".join(names)}')
    domains = {'validation': self.dls.valid} if domains is None else domains
    how: dict[str, Any] = dict(patches=patches, replace=replace, steps=steps, support=support, period=period)
    values: dict[str, dict[str, list[Measures]]] = {}
    curves: dict[tuple, Any] = {}
    shuffled: dict[tuple[str, str], pd.DataFrame] = {}
    with evaluating(self.model):
        tested = tested_domains(self, domains, n_episodes, n_way, n_shot, n_query, seed)
        bar = Bar(len(tested) * n_episodes, hasattr(self, 'progress'))
        for domain, dl, sampler in tested:
            of_domain = values[domain] = {name: [] for name in names}
            collected: dict[str, dict] = {name: {} for name in names}
            bar.comment, given = domain, masks.get(domain) if isinstance(masks, Mapping) else masks
            for k in bar.through(range(n_episodes)):
                episode = ExplainedEpisode(self.model, *episode_images(dl, sampler, k))
                if given is not None: episode.mask = seen_masks(self.dls, dl, sampler.episode(k).query, given)
                for name, explainer in explainers.items():
                    found = _measured(episode, explainer, seed + k, collected[name], **how)
                    if k < n_randomised:
                        at = randomisation(episode.model, partial(_maps_of, episode, explainer), seed)
                        found['query', 'randomised', None, ''] = at.rank_correlation.iloc[-1]
                        found['query', 'ssim', None, ''] = at.ssim.iloc[-1]
                        shuffled.setdefault((domain, name), at)
                    of_domain[name].append(found)
            curves |= {(domain, name, *at): np.mean(found, 0) for name in names for at, found in collected[name].items()}
    table = pd.DataFrame([_row(domain, name, key, of_domain[name], of_domain[reference])
                          for domain, of_domain in values.items() for name in names
                          for key in dict.fromkeys(key for found in of_domain[name] for key in found)])
    table.attrs = dict(curves=curves, episodes=values, randomisation=shuffled)
    return table


def _maps_of(episode: ExplainedEpisode, explainer: Any, model: Any) -> Tensor: return episode.maps(explainer, False, model)[0]


def _row(domain: str, name: str, key: tuple, found: list[Measures], other: list[Measures]) -> dict[str, Any]:
    "One measure of one explainer"
    own, others = (np.array([o[key] for o in of if key in o]) for of in (found, other))
    side, measure, patch, replace = key
    return dict(domain=domain, explainer=name, side=side, measure=measure, patch=patch, replaced_by=replace, value=own.mean(),
                ci95=ci95(own.tolist()), difference=(own - others).mean(), difference_ci95=ci95((own - others).tolist()))


def plot_removal(
    table: pd.DataFrame, # A table of `learn.faithfulness`
    domain: str | None = None, # None: the first
    side: str = 'query', # Or 'support'
    size: float = 2.6, # Side of a panel in inches
) -> Figure:
    """Plot the probability of the predicted class while patches are removed, one panel per patch size and replacement.

    Solid: the most relevant first. Dashed: the least relevant first. Grey: in a random order. Raises `ValueError` for a table
    without curves.
    """
    domain = table.domain.iloc[0] if domain is None else domain
    found = {key[1:]: curve for key, curve in table.attrs.get('curves', {}).items() if (key[0], key[2]) == (domain, side)}
    if not found:
        raise ValueError(f'no curves of {side!r} in domain {domain!r}: take the table as `learn.faithfulness` returned it')
    panels = list(dict.fromkeys(key[2:] for key in found))
    names = list(dict.fromkeys(key[0] for key in found))
    rows, columns = (list(dict.fromkeys(panel[i] for panel in panels)) for i in (0, 1))
    fig, axes = plt.subplots(len(rows), len(columns), figsize=(size * len(columns) + 1.6, size * len(rows)), squeeze=False,
                             sharex=True, sharey=True, layout='constrained')
    for panel in panels:
        ax = axes[rows.index(panel[0]), columns.index(panel[1])]
        for i, name in enumerate(names):
            forward, reverse, random = found[(name, side, *panel)]
            share = np.linspace(0, 1, len(forward))
            ax.plot(share, forward, c=f'C{i % 10}', lw=1.2, label=no_math(name))
            ax.plot(share, reverse, c=f'C{i % 10}', lw=1.2, ls='--')
            if not i: ax.plot(share, random, c='grey', ls=':', label='random order')
        ax.set_title(f'{panel[0]} px, {panel[1]}', fontsize=8)
    for ax in axes[-1]: ax.set_xlabel('share removed', fontsize=8)
    for ax in axes[:, 0]: ax.set_ylabel('probability', fontsize=8)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside right upper', fontsize=8)
    return fig
