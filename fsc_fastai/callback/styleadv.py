"StyleAdv: training against adversarial styles, block by block (Fu et al. 2023)"
from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from ..tensors import evaluating, plain
from .model import scores_of, single_output
from .order import ADDED
from .parts.blocks import changed, style_blocks
from .parts.global_classifier import ClassifierCallback
from .parts.styles import Style, kl, restyle, style

__all__ = ['StyleAdvCallback', 'START', 'attacked']

START = 16 / 255
Start = Literal['published', 'gaussian']


def attacked(
    value: Tensor, # Means or standard deviations `(n, C, 1, 1)`
    grad: Tensor, # Gradient of the loss with respect to them
    epsilon: float, # Step size
    noise: Tensor | None = None, # Random start in units of 16/255; None: 1 everywhere, as published
) -> Tensor:
    "The value after the random start and a step along the sign of the gradient"
    return value + START * (1 if noise is None else noise) + epsilon * grad.sign()


class StyleAdvCallback(ClassifierCallback):
    """Train on each episode twice: as it is, and with attacked styles after three blocks of the backbone (Fu et al. 2023).

    First, in eval mode and block after block, the means and standard deviations of the channels are attacked by the sign of the
    gradient of a global classification loss; earlier blocks already have their attacked styles. Then, in training mode, the
    model learns from L + L_attacked + KL(P ‖ P_attacked) + L_global, where L may be guided by explanations. The attack runs in
    single precision, since many gradients would be 0 in half precision. `losses` has those of the last step. Raises
    `ValueError` for a compiled model, for blocks without styles (of a ViT, unless `vit_view`), and for plain labels.
    """
    order = ADDED
    _stateattrs = (*ClassifierCallback._stateattrs, 'losses', '_styles')
    losses: Mapping[str, Tensor] = {}
    _styles: Mapping[str, Style] = {} # of the blocks that are restyled in this step

    def __init__(self,
        epsilons: Sequence[float] = (.8, .08, .008), # Step sizes of the attack, of which each block draws one in each step
        p_skip: float = .4, # Probability that a block keeps its style in the attacked pass
        start: Start = 'published', # Random start of the attack: 16/255 added, as published, or noise of this size
        min_std: float | None = None, # Least attacked standard deviation; None: any, as published, also negative ones
        blocks: Sequence[str] | None = None, # Names of the blocks within the model; None: all stages but stem and last
        n_classes: int | None = None, # Classes of the global classifier; None: those of `dls.vocab`
        vit_view: bool = False, # Styles for a ViT as published, where a channel mixes tokens and dimensions
    ):
        if start not in get_args(Start): raise ValueError(f'start={start!r}: choose from {get_args(Start)}')
        super().__init__(n_classes)
        self.epsilons, self.p_skip, self.start, self.min_std = epsilons, p_skip, start, min_std
        self.blocks, self.vit_view = blocks, vit_view

    def before_fit(self):
        super().before_fit()
        self.refuse_compiled('overlooks hooks')
        self.names = style_blocks(self.raw_model, self.blocks)

    def before_batch(self):
        self.leave()
        if self.idle: return
        step, (epsilons, restyled) = self.enter(), self.draw()
        images = torch.cat([plain(x) for x in self.xb[::2]])
        with evaluating(self.raw_model): styles = self.attack(images, self.class_labels, epsilons)
        self._styles = {name: styles[name] for name, wanted in zip(self.names, restyled, strict=True) if wanted}
        self.keep_maps(step)

    def draw(self) -> tuple[list[Sequence[float]], list[bool]]:
        "The step sizes for mean and standard deviation of each block, and whether the attacked pass is restyled there"
        return [[random.choice(self.epsilons)] * 2 for _ in self.names], [random.random() >= self.p_skip for _ in self.names]

    def attack(self, images: Tensor, y: Tensor, epsilons: Sequence[Sequence[float]]) -> dict[str, Style]:
        "The attacked style after each block"
        styles: dict[str, Style] = {}
        for name, of_block in zip(self.names, epsilons, strict=True):
            found = zip(*self.gradients(images, y, name, styles), of_block, strict=True)
            mean, std = (attacked(s, g, e, None if self.start == 'published' else torch.randn_like(s)) for s, g, e in found)
            styles[name] = mean, std if self.min_std is None else std.clamp(self.min_std)
        return styles

    def gradients(self, images: Tensor, y: Tensor, block: str, styles: Mapping[str, Style]) -> tuple[Sequence[Tensor], ...]:
        "Mean and standard deviation after a block, and the gradient of the global loss, given `styles` of earlier blocks"
        leaves: list[Tensor] = []
        def with_leaves(maps: Tensor) -> Tensor:
            leaves[:] = [s.requires_grad_() for s in style(maps.detach())]
            return restyle(maps.detach(), *leaves)
        with changed(self.raw_model, {**_restyling(styles), block: with_leaves}, self.vit_view):
            loss = self.global_classifier.loss(self.raw_model.encode(images), y)
        return [s.detach() for s in leaves], torch.autograd.grad(loss, leaves)

    def after_loss(self):
        if self.in_step is None: return
        maps, y = self.maps, self.class_labels
        with changed(self.raw_model, _restyling(self._styles), self.vit_view): output = self.raw_model(*self.xb)
        losses = dict(attacked=self.learn.loss_func(single_output(output), *self.yb),
                      kl=kl(scores_of(self.pred), scores_of(output)), classes=self.global_classifier.loss(maps, y))
        self.global_classifier.learn(maps, y)
        self.add_loss(sum(losses.values()))
        self.losses = {k: v.detach() for k, v in losses.items()}

    def leave(self) -> None:
        "Take everything off the model, and forget the styles"
        super().leave()
        self._styles = {}


def _restyling(styles: Mapping[str, Style]) -> dict[str, Callable[[Tensor], Tensor]]:
    return {name: partial(restyle, mean=mean, std=std) for name, (mean, std) in styles.items()}
