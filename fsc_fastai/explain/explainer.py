"The base class and contract of explainers"
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
    the scores of all classes, a detached tensor in the shape of `f_p`'s features, and leaves the model unchanged. To explain
    pixels, an explainer defines five more things; for any other callable, `LRP()` carries relevance through the encoder:

    | attribute | what it is | `LRP` | gradients |
    |---|---|---|---|
    | `trace(net, *inputs, model=, deep=)` | runs `net` to a `Traced`, which sends a start back to the inputs | rules | ∂ |
    | `start_of(scores)` | the start at the scores `(n_query, n_way)`, in their shape | equation (2) | equation (2) |
    | `start_of_output(out)` | the start at any other output, in its shape | `out` | 1 |
    | `finish(x, flow)` | relevance of `x` from the flow that arrived there, `(..., *x.shape)` | `flow` | `x * flow` |
    | `fractions` | fractions of the input at which flows are computed and averaged | `(1.,)` | `(1.,)`, or several |

    An explainer that explains a class from the scores of several classes overrides `starts`; one that only needs the scores of
    changed images overrides `of_images`.
    """
    fractions: tuple[float, ...] = (1.,) # Fractions of the input at which flows are computed
    own_score = False # A class is explained from its own score alone, which allows a faster pass over pairs

    @abstractmethod
    def __call__(self,
        model: nn.Module, # Has `classify`
        f_p: Any, # Processed features, a tensor or a `Processed`
    ) -> Tensor:
        "Relevance of the processed features, in the shape of `f_p`'s features; detached"

    @abstractmethod
    def trace(self,
        net: Callable[..., Tensor], # A module, or any function of tensors
        *inputs: Tensor, # Inputs whose relevance is wanted
        model: nn.Module | None = None, # The module that `net` runs, if it is not `net` itself
        deep: bool = False, # The network is deep, such as an encoder
    ) -> Traced:
        "Run `net` so that a start can be passed back through it"

    @abstractmethod
    def start_of(self, scores: Tensor) -> Tensor:
        "The start at the scores `(n_query, n_way)`, in the same shape"

    def start_of_output(self, out: Tensor) -> Tensor:
        "The start at an output of another network, in its shape: the output itself"
        return out.detach()

    def starts(self, scores: Tensor) -> Tensor:
        "The start at each score for each explained class `(n_query, n_way explained, n_way)`: 0 at scores of other classes"
        return torch.diag_embed(self.start_of(scores))

    def of_images(self,
        encode: Callable[[Tensor], Tensor], # Images to feature maps
        score: Callable[[Tensor, Tensor], Tensor], # Feature maps of support and queries to scores `(n_query, n_way)`
        support_x: Tensor, # Images `(n_support, channels, height, width)`
        query_x: Tensor, # Images `(n_query, channels, height, width)`
        support: bool, # Explain the support images too
    ) -> tuple[Tensor, Tensor | None] | None:
        "Relevance of queries and support as in `ImageRelevance`, if the explainer needs only scores; else None"
        return None

    def finish(self, x: Tensor, flow: Tensor) -> Tensor:
        "The relevance of `x` from the flow that arrived there, which here is the flow itself"
        return flow
