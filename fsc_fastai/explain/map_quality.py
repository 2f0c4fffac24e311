"Measures of heatmaps: the grid of strides, localisation by masks, similarity of two maps"
from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

__all__ = ['grid_energy', 'relevance_mass', 'points_at', 'rank_correlation', 'structural_similarity']


def grid_energy(
    heat: Tensor, # Heatmaps `(n, height, width)`
    period: int = 8, # Period of the grid in pixels, a product of strides; periods of 4 and 2 are included
) -> Tensor:
    """The share of a map's energy in a grid of this period `(n,)`: about 0 without a grid, 1 for a pure grid.

    It is the energy at frequencies k/period along rows and columns that exceeds that of neighbouring frequencies, divided by the
    energy at all frequencies except 0. Raises `ValueError` for maps of less than three periods.
    """
    (of_rows, all_rows), (of_columns, all_columns) = _grid_of_rows(heat, period), _grid_of_rows(heat.mT, period)
    return (of_rows + of_columns) / (all_rows + all_columns)


def _grid_of_rows(heat: Tensor, period: int) -> tuple[Tensor, Tensor]:
    "Energy of the grid along rows, and of all that changes along them"
    n_periods = heat.shape[-1] // period
    if n_periods < 3: raise ValueError(f'period={period}: wanted maps of at least {3 * period} pixels, found {heat.shape[-1]}')
    power = torch.fft.rfft(heat[..., :n_periods * period].double()).abs().square().sum(-2)
    last = power.shape[-1] - 1
    twice = torch.full((last + 1,), 2., dtype=power.dtype, device=power.device) # each stands for −f as well
    if n_periods * period % 2 == 0: twice[last] = 1
    k = torch.arange(n_periods, last + 1, n_periods, device=power.device)
    neighbours = (power[:, k - 1] + power[:, torch.where(k < last, k + 1, k - 1)]) / 2
    return (twice[k] * (power[:, k] - neighbours)).sum(1), (twice * power)[:, 1:].sum(1)


def relevance_mass(
    heat: Tensor, # Heatmaps `(n, height, width)`
    mask: Tensor, # True where the object is, in the same shape
) -> Tensor:
    """Relevance mass accuracy (Arras et al. 2022): the share of the positive relevance that lies within the mask `(n,)`.

    nan for a map without positive relevance.
    """
    positive = heat.clamp(min=0)
    return (positive * mask).sum((1, 2)) / positive.sum((1, 2))


def points_at(
    heat: Tensor, # Heatmaps `(n, height, width)`
    mask: Tensor, # True where the object is, in the same shape
) -> Tensor:
    "The pointing game (Zhang et al. 2016): does the largest relevance lie within the mask? 1 or 0 `(n,)`"
    return mask.flatten(1).gather(1, heat.flatten(1).argmax(1, keepdim=True))[:, 0].to(heat.dtype)


def rank_correlation(
    a: Tensor, # Heatmaps `(n, height, width)`
    b: Tensor, # Other heatmaps in the same shape
) -> Tensor:
    "Spearman's rank correlation of each pair of maps `(n,)`; nan if one of them is constant"
    a, b = (torch.from_numpy(rankdata(maps.flatten(1).cpu(), axis=1)) for maps in (a, b))
    a, b = (ranks - ranks.mean(1, keepdim=True) for ranks in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def structural_similarity(
    a: Tensor, # Heatmaps `(n, height, width)`
    b: Tensor, # Other heatmaps in the same shape
    window: int = 7, # Side of the windows, odd
) -> Tensor:
    "SSIM of each pair of maps `(n,)` (Wang et al. 2004), both scaled to 0–1, with uniform windows"
    a, b = (_scaled(maps.double())[:, None] for maps in (a, b))
    mean = lambda x: F.avg_pool2d(x, window, 1)
    sample = window**2 / (window**2 - 1)
    mu_a, mu_b = mean(a), mean(b)
    var_a, var_b, cov = (sample * (mean(x * y) - mean(x) * mean(y)) for x, y in ((a, a), (b, b), (a, b)))
    c1, c2 = .01**2, .03**2
    ssim = (2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    return ssim.mean((1, 2, 3))


def _scaled(maps: Tensor) -> Tensor:
    low, high = (f(maps.flatten(1), 1)[..., None, None] for f in (torch.amin, torch.amax))
    return (maps - low) / (high - low).clamp(min=1e-12)
