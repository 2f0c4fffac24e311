"Controls of explanation-guided training: its effect with misplaced relevance or none"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...explain.lrp import LRP
from ...explain.weights import relevance_weights

__all__ = ['ChangedWeights', 'shuffled_channels', 'shuffled', 'unweighted']


class ChangedWeights:
    """classify(change(w) ⊙ f_p) instead of classify(w ⊙ f_p), where w are the weights of Sun et al. 2020, equation (7).

        LRPGuidedCallback(second_pass=ChangedWeights(shuffled_channels))
    """
    def __init__(self,
        change: Callable[[Tensor], Tensor], # Changes the weights of pairs `(n_query, n_way, C, ...)` or nodes
        explainer: Callable[[Any, Any], Tensor] | None = None, # `explainer(model, f_p)`; None: `LRP()`
    ):
        self.change, self.explainer = change, explainer or LRP()

    def __call__(self,
        model: Any, # A model with `classify`
        f_p: Any, # Its processed features
    ) -> Tensor:
        "Output of the model for the weighted features"
        # random numbers that a change draws are not missing elsewhere: a training without it sees the same augmented images
        with torch.random.fork_rng(devices=[]): w = self.change(relevance_weights(self.explainer(model, f_p)))
        return model.training_output(w * f_p)


def shuffled_channels(
    w: Tensor, # Weights `(n_query, n_way, C, ...)` or `(n_graphs, n_nodes, C)`
) -> Tensor:
    "The weights of each pair or node with its channels in a random order: the same maps, at the wrong channels"
    order = torch.rand(w.shape[:3]).argsort(2).to(w.device, non_blocking=True)
    return w.take_along_dim(order.reshape(order.shape + (1,) * (w.ndim - 3)), 2)


def shuffled(
    w: Tensor, # Weights
) -> Tensor:
    "All weights of an episode in a random order: the same distribution, without meaning"
    return w.flatten()[torch.randperm(w.numel()).to(w.device, non_blocking=True)].reshape(w.shape)


def unweighted(
    model: Any, # A model with `classify`
    f_p: Any, # Its processed features
) -> Tensor:
    "A second pass whose weights are all 1: the loss counts ξ + λ times"
    return model.training_output(f_p)
