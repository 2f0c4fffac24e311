"Losses between two streams of features: a domain classifier and Gram matrices (Hu and Ma 2022, AFA)"
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ...tensors import full_precision, single

__all__ = ['domain_classifier', 'domain_loss', 'gram_loss', 'reversed_gradient', 'strength']


def strength(
    share: float, # Share of the training that is done
) -> float:
    "λ = 2/(1 + exp(−share)) − 1, from 0 to 0.46"
    return 2 / (1 + math.exp(-share)) - 1


def reversed_gradient(
    x: Tensor, # Any tensor
    weight: float = 1., # Factor of the gradient
) -> Tensor:
    "The same values, but the gradient with respect to `x` has the opposite sign"
    x = x.view_as(x)
    if x.requires_grad: x.register_hook(lambda g: -weight * g)
    return x


def gram_loss(
    plain_maps: Tensor, # `(n, C, H, W)`
    augmented: Tensor, # `(n, C, H, W)`
) -> Tensor:
    """√(Σ (G − G')²) / 4S²C², where G = F·Fᵀ for the C channels at the S positions of an image.

    As published, the sum includes the batch. For equal streams the gradient is 0.
    """
    with full_precision(plain_maps):
        f, g = (single(x).flatten(2) for x in (plain_maps, augmented))
        total = (f @ f.mT - g @ g.mT).square().sum()
        return torch.where(total > 0, total, 1.).sqrt().where(total > 0, 0.) / (4 * f.shape[2]**2 * f.shape[1]**2)


def domain_classifier(
    n_features: int, # Features of the encoder
    seed: int = 0, # Seed of the weights, which are the same in every process
    hidden: int = 100, # Features of the hidden layer
) -> nn.Sequential:
    "A network from features `(n, n_features)` to scores of the streams `(n, 2)`; it does not draw from global generators"
    first, last = (skip_init(nn.Linear, *shape) for shape in ((n_features, hidden), (hidden, 2)))
    generator = torch.Generator().manual_seed(seed)
    for layer in (first, last):
        nn.init.kaiming_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(), last)


def domain_loss(
    classifier: nn.Module, # Features to the scores of the streams
    plain_features: Tensor, # `(n, d)`, domain 0
    augmented: Tensor, # `(n, d)`, domain 1
    weight: float, # Weight of the reversed gradient
) -> Tensor:
    "Cross entropy of the classifier's softmax, to which a second softmax is applied, as published"
    with full_precision(augmented):
        p = classifier(reversed_gradient(torch.cat([plain_features, augmented]), weight)).softmax(1)
        return F.cross_entropy(p, torch.arange(2, device=p.device).repeat_interleave(len(augmented)))
