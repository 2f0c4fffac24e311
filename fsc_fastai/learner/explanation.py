"`learn.explain`: which pixels of query and support images speak for which class"
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fastcore.basics import listify, patch
from matplotlib.figure import Figure
from torch import Tensor

from ..adapt.base import as_adaptation
from ..briefly import brief_repr
from ..explain.heatmaps import plot_heatmaps, plot_support_heatmaps
from ..explain.to_pixels import attention_of, explain_images
from ..tensors import evaluating
from .core import FSCLearner

__all__ = ['EpisodeExplanation']


@dataclass(frozen=True)
class EpisodeExplanation:
    "The relevance of an episode's pixels for every query and class, with what it takes to draw it"
    query: Tensor               # relevance of the queries `(n_query, n_way, 3, height, width)`
    support: Tensor | None      # and of the support images `(n_query, n_way, n_support, 3, height, width)`
    scores: Tensor              # `(n_query, n_way)`
    images: tuple[Tensor, Tensor, Tensor]   # support images, their labels, query images
    classes: list[Any]          # names, in the order of the scores
    query_y: Tensor | None      # true labels, where they are known
    attention: Tensor | None    # of a cross attention network `(n_query, n_way, H, W)`
    __repr__ = brief_repr

    def plot(self,
        **kwargs, # For `plot_heatmaps`, such as `overlay` and `shared`
    ) -> Figure:
        "Queries by classes beside the support images, as the paper's Figure 1 (Figure 4 with attention); see `plot_heatmaps`"
        support_x, support_y, query_x = self.images
        return plot_heatmaps(query_x, self.query, self.scores, support_x, support_y, self.query_y, self.classes, self.attention,
                             **kwargs)

    def plot_support(self,
        query: int = 0, # The query whose classification is explained
        **kwargs, # For `plot_support_heatmaps`
    ) -> Figure:
        "The relevance of the support images for one query"
        if self.support is None: raise ValueError('the support was not explained: learn.explain(…, explain_support=True)')
        return plot_support_heatmaps(self.images[0], self.support[query], self.images[1], self.classes, **kwargs)


def _own_episode(learn: FSCLearner, query: Any, support: Mapping[Any, Any]) -> tuple[Tensor, Tensor, Tensor]:
    "Support images, labels and query images of the user, with the transforms of validation"
    by_class = [listify(images) for images in support.values()]
    if empty := [name for name, images in zip(support, by_class) if not images]:
        raise ValueError(f'no support image of class {", ".join(map(repr, empty))}: each class needs one at least')
    if len(by_class) < 2: raise ValueError(f'an explanation compares two classes at least, the support has {len(by_class)}')
    if not listify(query): raise ValueError('no image to explain: query is empty')
    everything = [image for images in by_class for image in images] + listify(query)
    x = torch.cat([batch[0] for batch in learn.dls.test_images(everything)])
    y = torch.arange(len(by_class)).repeat_interleave(torch.tensor([len(images) for images in by_class]))
    return x[:len(y)], y.to(x.device), x[len(y):]


@patch
def explain(
    self: FSCLearner,
    query: Any = None, # Images (files, PIL images, arrays, tensors) or one; None: one query per class of a validation episode
    support: Mapping[Any, Sequence[Any]] | None = None, # {class: its images}; None: the support of a validation episode
    *,
    explainer: Any = None, # Default: `LRP()`; also `GradientXInput()`, `IntegratedGradients()`, or a callable
    explain_support: bool = False, # Explain the support images too: n_query·n_way maps of each
    adapt: Any = None, # An adaptation to the support, or its name: the adapted model is explained
) -> EpisodeExplanation:
    """Relevance of every pixel for every (query, class), from the scores through the whole model (Sun et al. 2020, IV-E).

    Raises `ValueError` when only one of `query` and `support` is given or one is empty, and for scores that are not finite.
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
    else:
        support_x, support_y, query_x = _own_episode(self, query, support)
        classes = list(support)
    model, adaptation = self.model, as_adaptation(adapt)
    with evaluating(model):
        if adaptation is not None: model = adaptation(model, support_x, support_y, query_x).eval()
        R = explain_images(model, support_x, support_y, query_x, explainer, support=explain_support)
        attention = attention_of(model, support_x, support_y, query_x)
    return EpisodeExplanation(R.query, R.support, R.scores, (support_x, support_y, query_x), classes, query_y,
                              None if attention is None else attention[0])
