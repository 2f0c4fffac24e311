"`learn.explain`: which pixels speak for which class; `learn.explain_pair`: which parts of two images make them similar"
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from fastcore.basics import listify, patch
from matplotlib.figure import Figure
from torch import Tensor

from ..adapt.base import as_adaptation
from ..briefly import brief_repr
from ..explain.explainer import Explainer
from ..explain.heatmaps import Originals, plot_heatmaps, plot_support_heatmaps
from ..explain.overlay import Original
from ..explain.pair import PairExplanation
from ..explain.pair import explain_pair as pair_of
from ..explain.to_pixels import attention_of, explain_images
from ..tensors import evaluating
from .learner import FSCLearner
from .originals import originals_of, originals_of_episode

__all__ = ['EpisodeExplanation']


@dataclass(frozen=True)
class EpisodeExplanation:
    "The relevance of an episode's pixels for every query and class, and what is needed to plot it"
    query: Tensor               # Relevance of the queries `(n_query, n_way, 3, height, width)`
    support: Tensor | None      # Relevance of the support images `(n_query, n_way, n_support, 3, height, width)`
    scores: Tensor              # `(n_query, n_way)`
    images: tuple[Tensor, Tensor, Tensor]   # Support images, their labels, query images
    classes: list[Any]          # Names, in the order of the scores
    query_y: Tensor | None      # True labels, if they are known
    attention: Tensor | None    # Attention maps of a cross attention network `(n_query, n_way, H, W)`
    originals: Originals | None = None # Original support images and queries, which overlays draw
    against: int | None = None  # The class that all others are compared with
    __repr__ = brief_repr

    def plot(self,
        **kwargs, # For `plot_heatmaps`, such as `overlay`, `shared`, `cmap` and `save`
    ) -> Figure:
        "Plot the relevance of queries for each class and the support images, as in Figures 1 and 4 of the paper"
        support_x, support_y, query_x = self.images
        return plot_heatmaps(query_x, self.query, self.scores, support_x, support_y, self.query_y, self.classes, self.attention,
                             against=self.against, originals=self.originals, **kwargs)

    def plot_support(self,
        query: int = 0, # The query whose classification is explained
        **kwargs, # For `plot_support_heatmaps`
    ) -> Figure:
        "Plot the relevance of the support images for one query"
        if self.support is None: raise ValueError('the support was not explained: learn.explain(…, explain_support=True)')
        return plot_support_heatmaps(self.images[0], self.support[query], self.images[1], self.classes, against=self.against,
                                     originals=self.originals, **kwargs)


def _own_episode(
    learn: FSCLearner, query: Any, support: Mapping[Any, Any],
) -> tuple[Tensor, Tensor, Tensor, Originals | None]:
    "Support images, labels and query images of the user, with the transforms of validation; and the images as they were"
    by_class = [listify(images) for images in support.values()]
    if empty := [name for name, images in zip(support, by_class) if not images]:
        raise ValueError(f'no support image of class {", ".join(map(repr, empty))}: each class needs one at least')
    if len(by_class) < 2: raise ValueError(f'an explanation compares two classes at least, the support has {len(by_class)}')
    if not listify(query): raise ValueError('no image to explain: query is empty')
    everything = [image for images in by_class for image in images] + listify(query)
    x = torch.cat([batch[0] for batch in learn.dls.test_images(everything)])
    y = torch.arange(len(by_class)).repeat_interleave(torch.tensor([len(images) for images in by_class]))
    originals = originals_of(learn.dls, everything)
    return x[:len(y)], y.to(x.device), x[len(y):], _halves(originals, len(y))


def _halves(originals: list[Original] | None, n_support: int) -> Originals | None:
    return None if originals is None else (originals[:n_support], originals[n_support:])


def _index(classes: list[Any], name: Any) -> int:
    if name in classes: return classes.index(name)
    raise ValueError(f'against={name!r}: the classes here are {", ".join(map(repr, classes))}')


@patch
def explain(
    self: FSCLearner,
    query: Any = None, # Images (files, PIL images, arrays, tensors) or one; None: one query per class of a validation episode
    support: Mapping[Any, Sequence[Any]] | None = None, # {class: its images}; None: the support of a validation episode
    *,
    explainer: Any = None, # None: `LRP.faithful()`; `LRP.published()` as the paper; or another, or a callable
    explain_support: bool = False, # Explain the support images too, with n_query·n_way maps for each
    adapt: Any = None, # An adaptation to the support, or its name; the adapted model is explained
    against: Any = None, # A class; relevance of the difference between the scores of each other class and this one
) -> EpisodeExplanation:
    """Relevance of every pixel for every (query, class), from the scores through the whole model (Sun et al. 2020, IV-E).

    The default was chosen by measurement (`learn.faithfulness`, docs/explanations.md); the paper's figures use `LRP.published()`.
    Each class costs about a forward pass of the episode, the support several (see `explain_images`). Raises `ValueError` if only
    one of `query` and `support` is given or one is empty, for an unknown class in `against`, and for scores that are not finite.

        learn.explain(['new.jpg'], {'kestrel': kestrels, 'wren': wrens}).plot()
    """
    if (query is None) != (support is None):
        raise ValueError('explain needs both: learn.explain(images, {class: its images}), or neither for a validation episode')
    query_y: Tensor | None = None
    if query is None or support is None:
        episode = self.dls.valid.one_batch()
        first = torch.arange(episode.n_way) * episode.n_query
        support_x, support_y, query_x = episode.support_x, episode.support_y, episode.query_x[first]
        query_y = episode.query_y[first].as_subclass(Tensor)
        classes = [self.dls.valid.vocab[c] for c in episode.classes]
        positions, queries, _ = self.dls.valid.sampler.episode(0, self.dls.valid.epoch)
        seen = originals_of_episode(self.dls, [*positions, *(queries[i] for i in first.tolist())])
        originals = _halves(seen, len(positions))
    else:
        support_x, support_y, query_x, originals = _own_episode(self, query, support)
        classes = list(support)
    other = None if against is None else _index(classes, against)
    model, adaptation = self.model, as_adaptation(adapt)
    with evaluating(model):
        if adaptation is not None: model = adaptation(model, support_x, support_y, query_x).eval()
        R = explain_images(model, support_x, support_y, query_x, explainer, support=explain_support, against=other)
        attention = attention_of(model, support_x, support_y, query_x)
    return EpisodeExplanation(R.query, R.support, R.scores, (support_x, support_y, query_x), classes, query_y,
                              None if attention is None else attention[0], originals, other)


@patch
def explain_pair(
    self: FSCLearner,
    a: Any, # An image: a file, PIL image, array or tensor
    b: Any, # Another one
    explainer: Explainer | None = None, # `LRP()` (default), `GradientXInput()` or `IntegratedGradients()`
    *,
    grid: int = 8, # Rows and columns of the grid over which relevance is summed
    n_components: int | None = 64, # Random directions of the features to pass back; None: every feature, which is exact
    centre: Any = None, # Images whose mean vector is subtracted from both, for a Euclidean distance
) -> PairExplanation:
    """Which parts of two images make them similar: BiLRP of their similarity (see `fsc_fastai.explain.explain_pair`).

    Raises `TypeError` for a method whose score is no product of two vectors, such as RelationNet and GNNNet.
    """
    images = lambda items: torch.cat([batch[0] for batch in self.dls.test_images(items)])
    x, others = images([a, b]), None if centre is None else images(centre)
    with evaluating(self.model): found = pair_of(self.model, x[0], x[1], explainer, grid, n_components, others)
    originals = originals_of(self.dls, [a, b])
    return found if originals is None else replace(found, images=(originals[0], originals[1]))
