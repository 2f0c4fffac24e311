"ATA, adversarial task augmentation: training on images that are changed to raise the loss (Wang and Deng 2021)"
from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tensors import evaluating, plain
from .model import ModelCallback, single_output
from .order import ADDED

__all__ = ['ATACallback', 'random_kernel', 'ascended']


def random_kernel(
    size: int, # Side of the kernel, odd
    like: Tensor, # Images with the same channels, device and dtype
) -> Tensor:
    "A random kernel `(C, C, size, size)` by Xavier's normal initialisation"
    return torch.nn.init.xavier_normal_(like.new_empty(like.shape[1], like.shape[1], size, size))


def ascended(
    x: Tensor, # Images
    loss: Callable[[Tensor], Tensor], # The loss of images, which is increased
    lr: float, # Step size
    steps: int, # Number of steps
) -> Tensor:
    "The images after plain gradient ascent on their pixels, without sign, projection or clamp"
    for _ in range(steps):
        x = x.detach().requires_grad_()
        x = x + lr * torch.autograd.grad(loss(x), x)[0]
    return x.detach()


class ATACallback(ModelCallback):
    """Train on images that are changed to raise the loss of their episode (Wang and Deng 2021).

    Before each step all images of the episode pass through one random convolution, unless it is skipped; then their pixels
    ascend the loss of the episode, with the model in eval mode. The step trains on these images as usual, so explanations,
    feature-wise transformations and other callbacks apply. The attack always runs in single precision.

    The published step size is 80 for a GNN at 224 px; the default is in proportion to the number of pixels. Methods with other
    scores may need another: 20 was published for TPN. Raises `ValueError` for kernels of even size, which would shift the images.
    """
    order = ADDED

    def __init__(self,
        lr: float | None = None, # Step size of the attack; None: 80 · pixels/224²
        steps: int = 5, # Steps of the attack
        p_plain: float = .5, # Probability of skipping the convolution; TPN was trained with 0.6
        sizes: Sequence[int] = (1, 3, 5, 7, 11, 15), # Sides of the kernel, of which each step draws one
    ):
        if any(size % 2 == 0 for size in sizes): raise ValueError(f'ATACallback(sizes={sizes}): kernels need odd sizes')
        self.lr, self.steps, self.p_plain, self.sizes = lr, steps, p_plain, sizes

    def before_batch(self):
        if self.idle: return
        support_x, support_y, query_x = self.xb
        n = support_x.shape[0]
        x = self.convolved(torch.cat([plain(support_x), plain(query_x)]))
        def loss(x: Tensor) -> Tensor:
            return self.learn.loss_func(single_output(self.raw_model(x[:n], support_y, x[n:])), *self.yb)
        lr = 80 * x.shape[-1] * x.shape[-2] / 224**2 if self.lr is None else self.lr
        with evaluating(self.raw_model): x = ascended(x, loss, lr, self.steps)
        self.learn.xb = (x[:n], support_y, x[n:])

    def convolved(self, x: Tensor) -> Tensor:
        "All images after the same random convolution, or unchanged"
        if random.random() <= self.p_plain: return x
        return F.conv2d(x, kernel := self.kernel(x), padding=kernel.shape[-1] // 2)

    def kernel(self, x: Tensor) -> Tensor:
        "A random kernel for this step"
        return random_kernel(random.choice(self.sizes), x)
