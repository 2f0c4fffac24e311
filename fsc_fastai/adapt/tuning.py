"Gradient descent on a few numbers, for many episodes together: each has its own loss, and none waits for another"
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ['Adam', 'Adadelta', 'tune']


@dataclass(frozen=True)
class Adam:
    "Adam (Kingma and Ba 2015, Algorithm 1)"
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def start(self, w: Tensor) -> tuple[Tensor, Tensor]:
        "Both moments, at 0"
        return torch.zeros_like(w), torch.zeros_like(w)

    def step(self, g: Tensor, state: tuple[Tensor, Tensor], t: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        "What step t (from 1) subtracts, and the moments after it"
        (b1, b2), (m, v) = self.betas, state
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        return self.lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + self.eps), (m, v)


@dataclass(frozen=True)
class Adadelta:
    "Adadelta (Zeiler 2012, Algorithm 1) with a learning rate in front"
    lr: float
    rho: float = 0.9
    eps: float = 1e-6

    def start(self, w: Tensor) -> tuple[Tensor, Tensor]:
        "Mean squares of gradients and of steps, at 0"
        return torch.zeros_like(w), torch.zeros_like(w)

    def step(self, g: Tensor, state: tuple[Tensor, Tensor], t: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        "What a step subtracts, and the mean squares after it"
        of_g, of_steps = state
        of_g = self.rho * of_g + (1 - self.rho) * g * g
        delta = ((of_steps + self.eps) / (of_g + self.eps)).sqrt() * g
        return self.lr * delta, (of_g, self.rho * of_steps + (1 - self.rho) * delta * delta)


def tune(
    loss: Callable[[Tensor], Tensor], # Of weights `(…, *shape)` to a loss for each episode `(…)`
    w: Tensor, # Where to start
    optimizer: Adam | Adadelta, # The rule of a step
    steps: int, # How many
) -> tuple[Tensor, Tensor]:
    "The weights after `steps` steps, and the losses before each `(steps, …)`"
    if torch.compiler.is_compiling():
        raise ValueError('a method that learns by gradients has no graph to export: save a bundle, or use SimpleShot')
    state, losses = optimizer.start(w), []
    for t in range(1, steps + 1):
        # an explanation that traces what runs around this takes the weights for constants
        with torch._C.DisableTorchFunction(), torch.enable_grad():
            leaf = w.detach().requires_grad_()
            value = loss(leaf)
            g, = torch.autograd.grad(value.sum(), leaf)
        delta, state = optimizer.step(g, state, t)
        w = w - delta
        losses.append(value.detach())
    return w.detach(), torch.stack(losses) if losses else torch.zeros(0)
