"Does a heatmap depend on what the model has learned? It should change when weights are shuffled (Adebayo et al. 2018)"
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from .map_quality import rank_correlation, structural_similarity

__all__ = ['shuffled_layers', 'randomisation']


@torch.no_grad()
def shuffled_layers(
    model: nn.Module, # Stays as it is
    seed: int = 0, # Of the shuffling
) -> Iterator[tuple[str, Any]]:
    """The name of a layer, and a copy of the model whose weights are shuffled from the scores down to that layer; one by one.

    The weights of a layer change places with each other, so that their sizes stay. Norms are shuffled with the layer before them.
    The order is the reverse of the one in which the model's parts were registered.
    """
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for name, module in reversed(list(model.named_modules())):
        own = list(module.parameters(recurse=False))
        for p in own: p.copy_(p.flatten()[torch.randperm(p.numel(), generator=generator).to(p.device)].view_as(p))
        if any(p.ndim > 1 for p in own): yield name, model


def randomisation(
    model: nn.Module, # Stays as it is
    explain: Callable[[Any], Tensor], # A model to heatmaps `(n, height, width)` of the same images
    seed: int = 0, # Of the shuffling
) -> pd.DataFrame:
    """How alike heatmaps are to those of the model, while its weights are shuffled layer by layer from the scores to the pixels.

    A row a layer: its name, rank correlation and SSIM of |relevance|, on average over the images; 1 is the same map. A map that
    stays alike shows the image, not what the model makes of it. The first row, with the name '', is the model itself.
    """
    before = explain(model).abs()
    def row(name: str, maps: Tensor) -> dict[str, Any]:
        return dict(layer=name, rank_correlation=float(rank_correlation(before, maps).nanmean()),
                    ssim=float(structural_similarity(before, maps).nanmean()))
    shuffled = (row(name, explain(changed).abs()) for name, changed in shuffled_layers(model, seed))
    return pd.DataFrame([row('', before), *shuffled])
