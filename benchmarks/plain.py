"""Adaptations of the encoder as the published scripts run them: the model is copied for each episode, every step encodes anew.

With the same seed they draw the same random numbers as ours, so that scores can be compared.
"""
from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsc_fastai.adapt.augmentations import pmf_augment
from fsc_fastai.methods.base import FewShotModel

__all__ = ['plain_pmf', 'plain_fine_tune']


def plain_pmf(
    model: FewShotModel, x: Tensor, y: Tensor, query: Tensor, steps: int, lr: float, augment: bool = True, seed: int = 0,
) -> Tensor:
    "Scores of the queries (Hu et al. 2022): prototypes of the support against the augmented support"
    torch.manual_seed(seed)
    net = copy.deepcopy(model).eval()
    optimizer = torch.optim.Adam(net.encoder.parameters(), lr)

    def scores(query: Tensor) -> Tensor:
        f, f_query = (net.encode(o).mean((2, 3)) for o in (x, query))
        prototypes = torch.stack([f[y == k].mean(0) for k in range(int(y.max()) + 1)])
        return 10 * F.normalize(f_query, dim=1) @ F.normalize(prototypes, dim=1).T

    for _ in range(steps):
        loss = F.cross_entropy(scores(pmf_augment(x) if augment else x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad(): return scores(query)


def plain_fine_tune(
    model: FewShotModel, x: Tensor, y: Tensor, query: Tensor, steps: int, freeze: bool = False, seed: int = 0,
) -> Tensor:
    "Scores of the queries (Guo et al. 2020): a linear classifier, and the encoder in training mode unless it is frozen"
    torch.manual_seed(seed)
    net = copy.deepcopy(model).train(not freeze)
    fc = nn.Linear(net.encoder.out_shape[0], int(y.max()) + 1).to(x)
    optimizers = [torch.optim.SGD(fc.parameters(), .01, .9, .9, 1e-3)]
    if not freeze: optimizers.append(torch.optim.SGD(net.encoder.parameters(), .01))
    batches = (batch for _ in range(steps) for batch in torch.randperm(len(y)).split(4))
    for _, batch in zip(range(steps), batches):
        with torch.set_grad_enabled(not freeze): f = net.encode(x[batch]).mean((2, 3))
        loss = F.cross_entropy(fc(f), y[batch])
        for o in optimizers: o.zero_grad()
        loss.backward()
        for o in optimizers: o.step()
    net.eval()
    with torch.no_grad(): return fc(net.encode(query).mean((2, 3)))
