"""Adversarial feature augmentation (Hu and Ma 2022, AFA): the transformations of FT, trained to change the features.

Two streams run through the encoder: a plain one, and one with a transformation after the last norm of every block, which has the
few-shot loss. A domain classifier tells the streams apart, and its gradient is reversed for the encoder; a Gram loss draws them
together. Once the gradient of the transformations is reversed as well, they increase the loss that the encoder decreases.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..encode.transformation import remove_ft
from ..tensors import plain, pool_vectors, single
from .lft import FTCallback
from .parts.blocks import kept_maps
from .parts.global_classifier import mean_over_ranks
from .parts.two_streams import domain_classifier, domain_loss, gram_loss, strength

__all__ = ['AFACallback']

LEARNED, REVERSED, EPOCHS = 150, 250, 400
"In the published training: the first epoch that trains γ and β, the first that reverses their gradient, the number of epochs"


class AFACallback(FTCallback):
    """Train with L(augmented) + L(domains) + λ·L(Gram), λ = 2/(1 + exp(−epoch/400)) − 1 (Hu and Ma 2022).

    γ and β are constant at first, descend the loss from epoch 150 on and ascend it from 250 on. Transformations, domain
    classifier and optimizers are kept between fits and in `state_dict`; `losses` has those of the last step. For convolutional
    backbones. Does nothing under `lr_find`. Raises `ValueError` for a compiled model and beside another of these callbacks.
    """
    _stateattrs = (*FTCallback._stateattrs, 'discriminator', 'opts', 'losses', '_saved', '_maps', '_scale')
    discriminator: Any = None # The domain classifier, made on the first batch
    opts: list[Any] = [] # One for each half of the training: without γ, β and with them
    losses: Mapping[str, Tensor] = {}
    _saved: Mapping[str, Any] | None = None
    _maps: list[Tensor] = [] # Maps of the augmented stream, block by block
    _scale: Any = 1. # Loss scale of this step

    def __init__(self,
        lr: float = 1e-3, # Learning rate of the callback's own Adam
        of_epochs: int | None = EPOCHS, # Length of the training in which 150 and 250 are counted; None: the epochs of the fit
        twice: bool = True, # Also step the encoder by the callback's Adam, as published; False: by the learner's optimizer only
        blocks: Sequence[str] | None = None, # Modules of the model with a Gram loss, besides the last map; None: the stages
        seed: int = 0, # Seed of the domain classifier
        **kwargs: Any, # `gamma`, `beta` and `names` of `FTCallback`
    ):
        super().__init__(**kwargs)
        self.lr, self.of_epochs, self.twice, self.blocks, self.seed = lr, of_epochs, twice, blocks, seed

    @property
    def published_epoch(self) -> float:
        "The epoch of the published training that corresponds to this one"
        return self.epoch * EPOCHS / (self.of_epochs or self.n_epoch)

    def before_train(self):
        super().before_train()
        if self.discriminator is not None: self.discriminator.to(next(self.raw_model.parameters()).device)
        for opt in self.opts: opt.load_state_dict(opt.state_dict())  # its state follows the device

    def _build(self) -> None:
        super()._build()
        encoder = self.raw_model.encoder
        self.discriminator = domain_classifier(encoder.num_features, self.seed).to(next(encoder.parameters()))
        trained = [*self.discriminator.parameters(), *(encoder.parameters() if self.twice else [])]
        ft = [p.requires_grad_() for p in self.ft_parameters]
        self.opts = [torch.optim.Adam(trained, self.lr), torch.optim.Adam([*trained, *ft], self.lr)]
        if self._saved is not None: self.load_state_dict(self._saved)

    def _enter(self, step: ExitStack) -> None:
        super()._enter(step)
        self._maps = step.enter_context(kept_maps(self.raw_model, self.blocks))
        if self.published_epoch >= REVERSED:
            for p in self.ft_parameters: step.callback(p.register_hook(torch.neg).remove)

    def after_loss(self):
        if self.idle or not self.loss_grad.requires_grad: return
        remove_ft(self.raw_model)
        with kept_maps(self.raw_model, self.blocks) as maps: self.raw_model.encode(torch.cat([plain(x) for x in self.xb[::2]]))
        augmented, self._maps = self._maps[:len(maps)], []  # later ones are of this pass, or of another callback's
        lam = strength(self.published_epoch / EPOCHS)
        gram = torch.stack([gram_loss(f, g) for f, g in zip(maps, augmented, strict=True)]).mean()
        domains = domain_loss(self.discriminator, *(single(pool_vectors(f[-1])) for f in (maps, augmented)), lam)
        self.losses = dict(few_shot=self.learn.loss_grad.detach(), domains=domains.detach(), gram=gram.detach())
        self.add_loss(domains + lam * gram)
        self._scale = self._loss_scale()

    def after_cancel_step(self):
        for p in self._own: p.grad = None  # mixed precision found an overflow: these gradients are as useless as the model's

    @property
    def _own(self) -> list[nn.Parameter]: return [*self.discriminator.parameters(), *self.ft_parameters] if self.opts else []

    def after_step(self):
        own = [p for p in self._own if p.grad is not None]
        if not own: return
        grads = mean_over_ranks([p.grad if self._scale is None else (p.grad / self._scale).nan_to_num(0., 0., 0.) for p in own])
        for p, g in zip(own, grads, strict=True): p.grad = g
        for p in self.raw_model.encoder.parameters():
            if not p.requires_grad: p.grad = None  # zeros would be a step for Adam
        self.opts[self.published_epoch >= LEARNED].step()
        for p in own: p.grad = None

    def state_dict(self) -> dict[str, Any]:
        "The state of γ, β, the domain classifier and both optimizers"
        if not self.opts: return dict(self._saved or {})
        return dict(transformations=self._transformations_state(), classifier=self.discriminator.state_dict(),
                    opts=[opt.state_dict() for opt in self.opts])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        "Restore a state. Raises `ValueError` if it belongs to other transformations"
        self._saved = None if self.opts else state  # until they are made
        if not self.opts or not state: return
        self._load_transformations(state['transformations'])
        self.discriminator.load_state_dict(state['classifier'])
        for opt, saved in zip(self.opts, state['opts'], strict=True): opt.load_state_dict(saved)
