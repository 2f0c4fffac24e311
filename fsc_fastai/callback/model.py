"The base class of callbacks that hook into the model"
from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from fastai.callback.core import Callback
from fastai.torch_core import get_model
from torch import Tensor, nn

from ..tensors import single

__all__ = ['ModelCallback', 'scores_of', 'single_output']


def scores_of(
    output: Any, # Output of a model: scores, or in training a tuple that starts with them
) -> Tensor:
    "The scores `(n_query, n_way)`, or those at every position `(n_query, n_way, H, W)`"
    return output if isinstance(output, Tensor) else output[0]


def single_output(
    output: Any, # Output of a model: scores, or in training a tuple that starts with them
) -> Any:
    "The output in single precision at least, as mixed precision gives it to the loss"
    return single(output) if isinstance(output, Tensor) else tuple(single_output(o) for o in output)


class ModelCallback(Callback):
    "A callback for training steps that hooks into a model, which therefore must not be compiled"
    run_valid = False
    _stateattrs: tuple[str, ...] = ('in_step', 'maps')
    in_step: ExitStack | None = None # Takes off the model what is on it during a step
    maps: Any = None # Maps of the first training pass `(n, C, H, W)`, see `keep_maps`; in an episode the support comes first

    @property
    def raw_model(self) -> Any:
        "The model without the wrapper of distributed training"
        return get_model(self.learn.model)

    @property
    def idle(self) -> bool:
        "Is this `lr_find`, where the callback does nothing?"
        return hasattr(self.learn, 'lr_finder')

    def enter(self) -> ExitStack:
        "What closes when the step ends, however it ends"
        self.leave()
        self.in_step = ExitStack()
        return self.in_step

    def leave(self) -> None:
        "Take everything off the model"
        step, self.in_step = self.in_step, None
        if step is not None: step.close()

    def after_cancel_batch(self): self.leave()
    def after_batch(self): self.leave()

    def keep_maps(self,
        step: ExitStack, # Result of `enter`
    ) -> None:
        "Keep the feature maps of the next training pass in `maps` until the step ends"
        def keep(encoder: nn.Module, args: tuple, maps: Tensor) -> None:
            if self.maps is None and encoder.training: self.maps = maps
        step.callback(self.raw_model.get_submodule('encoder').register_forward_hook(keep).remove)
        step.callback(setattr, self, 'maps', None)

    def add_loss(self,
        loss: Tensor, # A scalar, for which there is a gradient
    ) -> None:
        "Train with the sum of this and the loss that is there, and show it"
        self.learn.loss_grad = self.learn.loss_grad + loss
        self.learn.loss = self.learn.loss_grad.clone()

    def refuse_compiled(self,
        why: str, # What goes wrong with a compiled model, for the message
        spared: str = '', # A part that may be compiled
    ) -> None:
        "Raise `ValueError` for a compiled model or one with a compiled part"
        for name, m in get_model(self.learn.model).named_modules():
            if spared and (name == spared or name.startswith(f'{spared}.')): continue
            if hasattr(m, '_orig_mod') or m._compiled_call_impl is not None:
                also = f' Its {spared} alone may be compiled.' if spared else ''
                raise ValueError(f'{type(self).__name__}: a compiled model {why}. Train the plain model '
                                 f'(`learn.model = learn.model._orig_mod`), and compile it afterwards.{also}')
