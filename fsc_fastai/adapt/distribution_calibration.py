"Distribution calibration: samples from Gaussians whose statistics come from similar base classes (Yang et al. 2021)"
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import register_adaptation
from .features import FeatureMethod, Fitted, distances
from .linear import LogisticHead

__all__ = ['DistributionCalibration']


@register_adaptation('distribution_calibration')
@dataclass(kw_only=True)
class DistributionCalibration(FeatureMethod):
    """Logistic regression on the support and on draws from calibrated Gaussians (Yang et al. 2021, Algorithm 1).

    The Gaussian of a support sample has the average mean and covariance of the k nearest base classes, where the feature of
    the sample counts among the means. Features go through Tukey's transform x^power, base statistics do not.
    """
    base_means: Tensor # `(n_base, d)`
    base_covariances: Tensor # `(n_base, d, d)`, with divisor n − 1
    k: int = 2 # Base classes to average
    alpha: float = 0.21 # Added to every entry of the covariances
    power: float = 0.5 # Exponent of Tukey's transform
    n_draws: int = 750 # Draws per class, divided among its samples
    seed: int = 0 # Seed of the draws

    def tukey(self, x: Tensor) -> Tensor:
        "x^power. Raises `ValueError` for negative features"
        if (x < 0).any():
            raise ValueError('DistributionCalibration takes a power of the features, some are negative: '
                             'use an encoder that ends in a ReLU')
        return x**self.power

    def calibrated(self,
        x: Tensor, # Transformed features of the support `(…, n, d)`
    ) -> tuple[Tensor, Tensor]:
        "Mean `(…, n, d)` and covariance `(…, n, d, d)` of each sample (equation (6)). `ValueError` for too few base classes"
        if len(self.base_means) <= self.k:
            raise ValueError(f'DistributionCalibration(k={self.k}) needs more base classes, found {len(self.base_means)}')
        base, spread = self.base_means.to(x), self.base_covariances.to(x)
        nearest = distances(x, base).topk(self.k, largest=False).indices
        mean = (base[nearest].sum(-2) + x) / (self.k + 1)
        return mean, spread[nearest].mean(-3) + self.alpha

    def adapt(self, support: Tensor, member: Tensor, query: Tensor | None) -> Fitted:
        "Draw, then fit logistic regression to samples and draws"
        x = self.tukey(support)
        mean, covariance = self.calibrated(x)
        shots = member.sum(-2)
        n = max(1, int(self.n_draws // shots.max()))
        return self.on_draws(x, member, _draws(mean, covariance, n, self.seed))

    def on_draws(self, x: Tensor, member: Tensor, draws: Tensor) -> Fitted:
        "Fit logistic regression to transformed samples `(…, n, d)` and draws `(…, n, n_draws, d)`"
        n_draws = draws.shape[-2]
        classifier = LogisticHead().fit(torch.cat([x, draws.flatten(-3, -2)], -2),
                                        torch.cat([member, member.repeat_interleave(n_draws, -2)], -2))
        classifier.treat = self.tukey
        return classifier


def _draws(mean: Tensor, covariance: Tensor, n: int, seed: int) -> Tensor:
    "`(…, n, n_draws, d)` of each Gaussian, the same noise in every episode; of a covariance what is negative is left out"
    value, vector = torch.linalg.eigh(covariance)
    generator = torch.Generator(mean.device).manual_seed(seed)
    noise = torch.randn(mean.shape[-2], n, mean.shape[-1], generator=generator, dtype=mean.dtype, device=mean.device)
    return mean[..., None, :] + (noise * value.clamp(min=0).sqrt()[..., None, :]) @ vector.mT
