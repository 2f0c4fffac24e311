"Gradient descent on a few numbers, for many episodes together: each has its own loss, and none waits for another"
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .features import distances, unit

__all__ = ['Adam', 'Adadelta', 'Slope', 'tune', 'by_autograd', 'through_softmax', 'CosineTo', 'HalfSquareTo', 'DistanceTo']

Slope = Callable[[Tensor], tuple[Tensor, Tensor]]
"Weights `(…, *shape)` to a loss for each episode `(…)` and its gradient"


@dataclass(frozen=True)
class Adam:
    "Adam (Kingma and Ba 2015, Algorithm 1)"
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def start(self, w: Tensor) -> tuple[Tensor, Tensor]:
        "Both moments, at 0"
        return torch.zeros_like(w), torch.zeros_like(w)

    def step(self, w: Tensor, g: Tensor, state: tuple[Tensor, Tensor], t: int) -> None:
        "Move w, and the moments, by step t (from 1)"
        (b1, b2), (m, v) = self.betas, state
        m.lerp_(g, 1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        w.addcdiv_(m, (v / (1 - b2**t)).sqrt_().add_(self.eps), value=-self.lr / (1 - b1**t))


@dataclass(frozen=True)
class Adadelta:
    "Adadelta (Zeiler 2012, Algorithm 1) with a learning rate in front"
    lr: float
    rho: float = 0.9
    eps: float = 1e-6

    def start(self, w: Tensor) -> tuple[Tensor, Tensor]:
        "Mean squares of gradients and of steps, at 0"
        return torch.zeros_like(w), torch.zeros_like(w)

    def step(self, w: Tensor, g: Tensor, state: tuple[Tensor, Tensor], t: int) -> None:
        "Move w, and the mean squares"
        of_g, of_steps = state
        of_g.mul_(self.rho).addcmul_(g, g, value=1 - self.rho)
        delta = (of_steps + self.eps).div_(of_g + self.eps).sqrt_().mul_(g)
        of_steps.mul_(self.rho).addcmul_(delta, delta, value=1 - self.rho)
        w.sub_(delta, alpha=self.lr)


def tune(
    slope: Slope, # What is descended
    w: Tensor, # Where to start
    optimizer: Adam | Adadelta, # The rule of a step
    steps: int, # How many
) -> tuple[Tensor, Tensor]:
    "The weights after `steps` steps, and the losses before each `(steps, …)`"
    # an explanation that traces what runs around this takes the weights for constants
    with torch._C.DisableTorchFunction(), torch.no_grad():
        w = w.detach().clone(memory_format=torch.contiguous_format)
        state, losses = optimizer.start(w), []
        for t in range(1, steps + 1):
            loss, g = slope(w)
            optimizer.step(w, g, state, t)
            losses.append(loss)
    return w, torch.stack(losses) if losses else torch.zeros(0)


def by_autograd(
    loss: Callable[[Tensor], Tensor], # Of weights to a loss for each episode
) -> Slope:
    "The slope of a loss whose gradient nobody wrote out"
    def slope(w: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = w.detach().requires_grad_()
            value = loss(leaf)
            g, = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), g
    return slope


def through_softmax(
    p: Tensor, # Probabilities `(…, n, n_way)`
    g: Tensor, # Gradient by them
) -> Tensor:
    "The gradient by the logits"
    return p * (g - (p * g).sum(-1, keepdim=True))


# Scores of features against prototypes that are tuned, and the way back: from a gradient by the scores to one by the prototypes

class CosineTo:
    "Cosines"
    def __init__(self,
        x: Tensor, # Features `(…, n, d)`
        start: Tensor, # Prototypes before the first step `(…, n_way, d)`
    ):
        self.x = unit(x)

    def scores(self, w: Tensor) -> Tensor:
        "`(…, n, n_way)`"
        self.length = w.norm(dim=-1, keepdim=True).clamp_(min=1e-12)
        self.w = w / self.length
        self.found = (self.w @ self.x.mT).mT
        return self.found

    def back(self, g: Tensor) -> Tensor:
        "Σ g (x̂ − cos·ŵ) / ‖w‖, of the last scores"
        return (g.mT @ self.x - (g * self.found).sum(-2)[..., None] * self.w) / self.length


class HalfSquareTo:
    "Negative halves of squared distances, seen from the mean of the first prototypes: nearer to 0 fewer digits are lost"
    def __init__(self, x: Tensor, start: Tensor):
        self.centre = start.mean(-2, keepdim=True)
        self.x = x - self.centre
        self.squares = self.x.norm(dim=-1, keepdim=True).square()

    def scores(self, w: Tensor) -> Tensor:
        "`(…, n, n_way)`"
        self.w = w = w - self.centre
        return (w @ self.x.mT).mT - (self.squares + w.norm(dim=-1).square()[..., None, :]) / 2

    def back(self, g: Tensor) -> Tensor:
        "Σ g (x − w)"
        return g.mT @ self.x - g.sum(-2)[..., None] * self.w


class DistanceTo:
    "Negative distances, told from those to the start: a prototype that starts as a sample has distance and gradient 0 there"
    def __init__(self, x: Tensor, start: Tensor):
        self.x, self.start, self.squares = x, start, distances(x, start).square()

    def scores(self, w: Tensor) -> Tensor:
        "‖x − w‖² = ‖x − w₀‖² − 2(x − w₀)·δ + ‖δ‖² with δ = w − w₀, `(…, n, n_way)`"
        self.w, moved = w, w - self.start
        along = (moved @ self.x.mT - (moved * self.start).sum(-1)[..., None]).mT
        self.found = (self.squares - 2 * along + moved.square().sum(-1)[..., None, :]).clamp_(min=0).sqrt_()
        return -self.found

    def back(self, g: Tensor) -> Tensor:
        "Σ g (x − w) / ‖x − w‖"
        h = torch.where(self.found > 0, g / self.found, 0.)
        return h.mT @ self.x - h.sum(-2)[..., None] * self.w
