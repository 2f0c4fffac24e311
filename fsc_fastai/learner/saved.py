"The state that `learn.save` writes besides the weights"
from __future__ import annotations

from typing import Any

from fastai.learner import Learner

from ..callback.resume import callbacks_with_state

__all__ = ['OptimizerAndCallbacks']


class OptimizerAndCallbacks:
    "A learner's optimizer together with the state of its callbacks, which fastai's `save_model` and `load_model` take"
    def __init__(self,
        learn: Learner, # A learner with an optimizer
    ):
        self.opt: Any = learn.opt
        self.callbacks = callbacks_with_state(learn)
        self.found: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        "The state of the optimizer and, under `callbacks`, of every callback that has one"
        # fastai's optimizers look at their own entries alone
        kept = {name: cb.state_dict() for name, cb in self.callbacks.items()}
        return self.opt.state_dict() | (dict(callbacks=kept) if kept else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Restore the optimizer; `load_callbacks` restores the callbacks"
        self.found = state.get('callbacks', {})
        self.opt.load_state_dict(state)

    def load_callbacks(self) -> None:
        "Restore the callbacks that are both in the learner and in the file"
        # not in `load_state_dict`, whose errors `load_model` turns into a warning
        for name in self.callbacks.keys() & self.found.keys(): self.callbacks[name].load_state_dict(self.found[name])
