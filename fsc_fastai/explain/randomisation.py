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
    model: nn.Module, # The model, which does not change
    seed: int = 0, # Seed of the shuffling
) -> Iterator[tuple[str, Any]]:
    """Yield each layer's name with a copy of the model whose weights are shuffled from the scores down to that layer.

    Weights are permuted within a layer, which keeps their distribution; norms are shuffled with the layer before them. The order
    is the reverse of the one in which the parts of the model were registered.
    """
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for name, module in reversed(list(model.named_modules())):
        own = list(module.parameters(recurse=False))
        for p in own: p.copy_(p.flatten()[torch.randperm(p.numel(), generator=generator).to(p.device)].view_as(p))
        if any(p.ndim > 1 for p in own): yield name, model


def randomisation(
    model: nn.Module, # The model, which does not change
    explain: Callable[[Any], Tensor], # Maps a model to heatmaps `(n, height, width)` of the same images
    seed: int = 0, # Seed of the shuffling
) -> pd.DataFrame:
    """Similarity of heatmaps to those of the model while its weights are shuffled layer by layer, from the scores to the pixels.

    One row per layer: its name, and the mean rank correlation and SSIM of |relevance| over the images; 1 is the same map. A map
    that stays similar shows the image, not what the model has learned. The first row, named '', is the model itself.
    """
    before = explain(model).abs()
    def row(name: str, maps: Tensor) -> dict[str, Any]:
        return dict(layer=name, rank_correlation=float(rank_correlation(before, maps).nanmean()),
                    ssim=float(structural_similarity(before, maps).nanmean()))
    shuffled = (row(name, explain(changed).abs()) for name, changed in shuffled_layers(model, seed))
    return pd.DataFrame([row('', before), *shuffled])
