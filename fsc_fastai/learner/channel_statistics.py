"How balanced the channels of an encoder are: Figure 3 of the paper"
from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from fastcore.basics import patch
from torch import Tensor

from ..drawing import no_math
from ..tensors import evaluating
from .episode_scores import encode_images
from .learner import FSCLearner
from .tested import named_domains

__all__ = ['channel_statistics', 'statistics_row', 'plot_feature_statistics']


def channel_statistics(
    f: Tensor, # Feature maps `(n, C, H, W)`
) -> tuple[Tensor, Tensor]:
    """Variance over the channels and 95 % − 45 % quantile difference of each image, each `(n,)`.

    The value of a channel is the 95 % quantile over its positions, since relevant features fill a small region. Lower statistics
    mean that features are spread over the channels instead of focused on a few (Sun et al. 2020, section IV-D).
    """
    pooled = f.flatten(2).quantile(0.95, dim=2)
    low, high = pooled.quantile(torch.tensor([0.45, 0.95], device=f.device), dim=1)
    return pooled.var(1, correction=0), high - low


def statistics_row(
    f: Tensor, # Feature maps of all images of a domain `(n, C, H, W)`
) -> dict[str, float]:
    "Mean and standard deviation over the images of both statistics: n_images, variance(_std), quantile_difference(_std)"
    # sorting takes several times the memory of what it sorts
    variance, difference = (torch.cat(parts) for parts in zip(*(channel_statistics(images.float()) for images in f.split(128))))
    return dict(n_images=len(f), variance=variance.mean().item(), variance_std=variance.std().item(),
                quantile_difference=difference.mean().item(), quantile_difference_std=difference.std().item())


@patch
def feature_statistics(
    self: FSCLearner,
    domains: Any = None, # Domains as for `evaluate`
) -> pd.DataFrame:
    """Mean and standard deviation over the images of each domain: domain, n_images, variance(_std), quantile_difference(_std).

    Raises `ValueError` where there are no domains.
    """
    with evaluating(self.model):
        return pd.DataFrame([dict(domain=name) | statistics_row(encode_images(self.model, dl.images()))
                             for name, dl in named_domains(self, domains).items()])


def plot_feature_statistics(
    tables: dict[str, pd.DataFrame], # Tables of `learn.feature_statistics` by model, over the same domains
) -> plt.Figure:
    """The two statistics of several models side by side, with the standard deviation over the images (Figure 3).

    Raises `ValueError` without a table.
    """
    if not tables: raise ValueError('no tables to plot: give {model: learn.feature_statistics()}')
    fig, axes = plt.subplots(2, 1, figsize=(8, 5), sharex=True, layout='constrained')
    width = 0.8 / len(tables)
    for ax, column in zip(axes, ('variance', 'quantile_difference')):
        for i, (name, table) in enumerate(tables.items()):
            at = [j + i*width for j in range(len(table))]
            ax.bar(at, table[column], width, yerr=table[f'{column}_std'], label=no_math(name), capsize=2)
        ax.set_ylabel(column.replace('_', ' '))
    axes[0].legend()
    domains = next(iter(tables.values())).domain
    axes[1].set_xticks([j + 0.4 - width/2 for j in range(len(domains))], list(map(no_math, domains)))
    return fig
