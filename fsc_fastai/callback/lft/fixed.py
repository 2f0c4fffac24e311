"Training with feature-wise transformations of fixed γ and β (FT; Tseng et al. 2020)"
from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ...encode.transformation import FeatureWiseTransformation, add_ft, remove_ft
from ..model import ModelCallback
from ..order import TRANSFORMED

__all__ = ['FTCallback']


class FTCallback(ModelCallback):
    """Train with feature-wise transformations of fixed γ, β in the encoder (FT of Table IV).

    The transformations are in the model only during a training step, so saving, exporting, validating and optimising the model
    do not see them. Does nothing under `lr_find`. Raises `ValueError` for a compiled model.
    """
    order = TRANSFORMED
    captured: tuple[str, ...] | str = ()
    _stateattrs = (*ModelCallback._stateattrs, 'transformations')
    transformations: dict[str, FeatureWiseTransformation] = {} # made on the first batch

    def __init__(self,
        gamma: float = 0.3, # Initial γ of every channel
        beta: float = 0.5, # Initial β of every channel
        names: list[str] | None = None, # Normalisation layers to follow; None: `residual_norms`
    ):
        self.gamma, self.beta, self.names = gamma, beta, names

    def before_fit(self):
        self.leave()  # an error may have ended the last fit in the middle of a step
        if sum(isinstance(cb, FTCallback) for cb in self.learn.cbs) > 1:
            raise ValueError(f'{type(self).__name__}: the learner has two callbacks with feature-wise transformations, use one')
        self.refuse_compiled('overlooks hooks and has no second derivative')

    def before_batch(self):
        self.leave()
        if self.idle: return
        if not self.transformations: self._build()
        self._enter(self.enter())

    def _build(self) -> None:
        "Find the places of the transformations by the first batch, and make them"
        self.transformations = add_ft(self.raw_model, self.gamma, self.beta, self.names, self.xb[0].as_subclass(Tensor))
        remove_ft(self.raw_model)
        for layer in self.transformations.values(): layer.requires_grad_(False)

    def _enter(self, step: ExitStack) -> None:
        "What holds during a training step; closing `step` undoes it"
        model = self.raw_model
        step.callback(remove_ft, model)
        for name, layer in self.transformations.items(): layer.follow(model.get_submodule(name))
        def leave_if_failed(module: nn.Module, args: tuple, output: Any) -> None:
            if output is None: self.leave()
        step.callback(model.register_forward_hook(leave_if_failed, always_call=True).remove)

    def before_train(self):
        device = next(self.raw_model.parameters()).device
        for layer in self.transformations.values(): layer.to(device)

    @property
    def ft_parameters(self) -> list[nn.Parameter]:
        "γ and β of every transformation"
        return [p for layer in self.transformations.values() for p in layer.parameters()]

    def _loss_scale(self) -> Tensor | None:
        "Mixed precision's loss scale as a tensor on the device, None in single precision"
        scaler = getattr(self.learn, 'scaler', None)
        if scaler is None or not scaler.is_enabled(): return None
        return scaler.scale(torch.ones((), device=self.loss_grad.device))

    def _transformations_state(self) -> dict[str, Any]:
        return {name: layer.state_dict() for name, layer in self.transformations.items()}

    def _load_transformations(self, state: Mapping[str, Any]) -> None:
        "γ and β from `_transformations_state`; `ValueError` where it is of others"
        if list(state) != list(self.transformations):
            raise ValueError(f'{type(self).__name__}: the saved transformations follow {", ".join(state)}; '
                             f'this model has them after {", ".join(self.transformations)}')
        for name, layer in self.transformations.items(): layer.load_state_dict(state[name])
