"What an explainer is"
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .engine import Traced

__all__ = ['Explainer']


class Explainer(ABC):
    """The contract of explainers.

    Guided training and `explain` take any callable: `explainer(model, f_p)` returns the relevance of the processed features for
    the scores of all classes, a tensor in the shape of `f_p`'s features, detached, and leaves the model as it was. To go on from
    the features to the pixels, an explainer says five things more (another callable lets `LRP()` go on):

    | attribute | what it is | `LRP` | gradients |
    |---|---|---|---|
    | `trace(net, *inputs, model=, deep=)` | runs `net` to a `Traced`, which sends a start back to the inputs | rules | ∂ |
    | `start_of(scores)` | what starts at the scores `(n_query, n_way)`, in their shape | equation (2) | equation (2) |
    | `start_of_output(out)` | what starts at any output that is explained as it is, in its shape | `out` | 1 |
    | `finish(x, flow)` | relevance of `x` from what arrived there, `(..., *x.shape)` | `flow` | `x * flow` |
    | `fractions` | parts of the input at which flows are taken, whose mean arrives | `(1.,)` | `(1.,)`, or several |

    One that starts at the scores of several classes to explain one says so by `starts`; one that asks for nothing but the scores
    of other images, by `of_images`.
    """
    fractions: tuple[float, ...] = (1.,) # Of the input, where flows are taken
    own_score = False # Is a class explained from its own score alone, so that a pass over pairs, which is faster, can do it?

    @abstractmethod
    def __call__(self,
        model: nn.Module, # Has `classify`
        f_p: Any, # Processed features, a tensor or a `Processed`
    ) -> Tensor:
        "Relevance of the processed features, in the shape of `f_p`'s features; detached"

    @abstractmethod
    def trace(self,
        net: Callable[..., Tensor], # A module, or any function of tensors
        *inputs: Tensor, # What relevance is wanted of
        model: nn.Module | None = None, # The module that `net` runs, if it is not `net` itself
        deep: bool = False, # A deep network, such as an encoder?
    ) -> Traced:
        "Run `net`, so that a start can be passed back through it"

    @abstractmethod
    def start_of(self, scores: Tensor) -> Tensor:
        "The relevance that starts at the scores `(n_query, n_way)`, in the same shape"

    def start_of_output(self, out: Tensor) -> Tensor:
        "What starts at an output that is explained as it is, in the same shape: the output itself"
        return out.detach()

    def starts(self, scores: Tensor) -> Tensor:
        "What starts at each score to explain each class, `(n_query, n_way explained, n_way)`: nothing at those of other classes"
        return torch.diag_embed(self.start_of(scores))

    def of_images(self,
        encode: Callable[[Tensor], Tensor], # Images to feature maps
        score: Callable[[Tensor, Tensor], Tensor], # Feature maps of support and queries to scores `(n_query, n_way)`
        support_x: Tensor, # Images `(n_support, channels, height, width)`
        query_x: Tensor, # Images `(n_query, channels, height, width)`
        support: bool, # Explain the support images too?
    ) -> tuple[Tensor, Tensor | None] | None:
        "Relevance of queries and support as in `ImageRelevance`, by an explainer that asks for nothing but scores; else None"
        return None

    def finish(self, x: Tensor, flow: Tensor) -> Tensor:
        "Relevance of `x` from what arrived there: nothing is left to do"
        return flow
