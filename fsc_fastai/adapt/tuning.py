"Gradient descent on small tensors for many episodes at once, each with its own loss"
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .features import distances, unit

__all__ = ['Adam', 'Adadelta', 'Slope', 'tune', 'by_autograd', 'through_softmax', 'CosineTo', 'HalfSquareTo', 'DistanceTo']

Slope = Callable[[Tensor], tuple[Tensor, Tensor]]
"A function from weights `(…, *shape)` to the loss of each episode `(…)` and its gradient"


@dataclass(frozen=True)
class Adam:
    "Adam (Kingma and Ba 2015, Algorithm 1)"
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def start(self, w: Tensor) -> tuple[Tensor, Tensor]:
        "Both moments, which start at 0"
        return torch.zeros_like(w), torch.zeros_like(w)

    def step(self, w: Tensor, g: Tensor, state: tuple[Tensor, Tensor], t: int) -> None:
        "Update w and the moments in place; t counts steps from 1"
        (b1, b2), (m, v) = self.betas, state
        m.lerp_(g, 1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        w.addcdiv_(m, (v / (1 - b2**t)).sqrt_().add_(self.eps), value=-self.lr / (1 - b1**t))


@dataclass(frozen=True)
class Adadelta:
    "Adadelta (Zeiler 2012, Algorithm 1), times a learning rate"
    lr: float
    rho: float = 0.9
    eps: float = 1e-6

    def start(self, w: Tensor) -> tuple[Tensor, Tensor]:
        "Mean squares of gradients and of steps, which start at 0"
        return torch.zeros_like(w), torch.zeros_like(w)

    def step(self, w: Tensor, g: Tensor, state: tuple[Tensor, Tensor], t: int) -> None:
        "Update w and the mean squares in place"
        of_g, of_steps = state
        of_g.mul_(self.rho).addcmul_(g, g, value=1 - self.rho)
        delta = (of_steps + self.eps).div_(of_g + self.eps).sqrt_().mul_(g)
        of_steps.mul_(self.rho).addcmul_(delta, delta, value=1 - self.rho)
        w.sub_(delta, alpha=self.lr)


def tune(
    slope: Slope, # Loss and gradient
    w: Tensor, # Initial weights
    optimizer: Adam | Adadelta, # The optimizer
    steps: int, # Number of steps
) -> tuple[Tensor, Tensor]:
    "The weights after all steps, and the losses before each step `(steps, …)`"
    # an explanation that traces the caller takes the weights as constants
    with torch._C.DisableTorchFunction(), torch.no_grad():
        w = w.detach().clone(memory_format=torch.contiguous_format)
        state, losses = optimizer.start(w), []
        for t in range(1, steps + 1):
            loss, g = slope(w)
            optimizer.step(w, g, state, t)
            losses.append(loss)
    return w, torch.stack(losses) if losses else torch.zeros(0)


def by_autograd(
    loss: Callable[[Tensor], Tensor], # Maps weights to the loss of each episode
) -> Slope:
    "The `Slope` of a loss, with its gradient by autograd"
    def slope(w: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = w.detach().requires_grad_()
            value = loss(leaf)
            g, = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), g
    return slope


def through_softmax(
    p: Tensor, # Probabilities `(…, n, n_way)`
    g: Tensor, # Gradient with respect to them
) -> Tensor:
    "The gradient with respect to the logits"
    return p * (g - (p * g).sum(-1, keepdim=True))


# Each class computes scores of features and prototypes, and turns a gradient of the scores into one of the prototypes

class CosineTo:
    "Cosines of features and prototypes"
    def __init__(self,
        x: Tensor, # Features `(…, n, d)`
        start: Tensor, # Initial prototypes `(…, n_way, d)`
    ):
        self.x = unit(x)

    def scores(self, w: Tensor) -> Tensor:
        "Scores `(…, n, n_way)` for prototypes w"
        self.length = w.norm(dim=-1, keepdim=True).clamp_(min=1e-12)
        self.w = w / self.length
        self.found = (self.w @ self.x.mT).mT
        return self.found

    def back(self, g: Tensor) -> Tensor:
        "The gradient Σ g (x̂ − cos·ŵ) / ‖w‖ at the last scores"
        return (g.mT @ self.x - (g * self.found).sum(-2)[..., None] * self.w) / self.length


class HalfSquareTo:
    "Negative halves of squared distances, computed relative to the mean of the initial prototypes to lose fewer digits"
    def __init__(self, x: Tensor, start: Tensor):
        self.centre = start.mean(-2, keepdim=True)
        self.x = x - self.centre
        self.squares = self.x.norm(dim=-1, keepdim=True).square()

    def scores(self, w: Tensor) -> Tensor:
        "Scores `(…, n, n_way)` for prototypes w"
        self.w = w = w - self.centre
        return (w @ self.x.mT).mT - (self.squares + w.norm(dim=-1).square()[..., None, :]) / 2

    def back(self, g: Tensor) -> Tensor:
        "The gradient Σ g (x − w) at the last scores"
        return g.mT @ self.x - g.sum(-2)[..., None] * self.w


class DistanceTo:
    "Negative distances, updated from the initial ones, so that a prototype equal to a sample has distance and gradient 0"
    def __init__(self, x: Tensor, start: Tensor):
        self.x, self.start, self.squares = x, start, distances(x, start).square()

    def scores(self, w: Tensor) -> Tensor:
        "Scores `(…, n, n_way)` from ‖x − w‖² = ‖x − w₀‖² − 2(x − w₀)·δ + ‖δ‖², where δ = w − w₀"
        self.w, moved = w, w - self.start
        along = (moved @ self.x.mT - (moved * self.start).sum(-1)[..., None]).mT
        self.found = (self.squares - 2 * along + moved.square().sum(-1)[..., None, :]).clamp_(min=0).sqrt_()
        return -self.found

    def back(self, g: Tensor) -> Tensor:
        "The gradient Σ g (x − w) / ‖x − w‖ at the last scores"
        h = torch.where(self.found > 0, g / self.found, 0.)
        return h.mT @ self.x - h.sum(-2)[..., None] * self.w
