"What a file of `learn.save` holds beside the weights"
from __future__ import annotations

from typing import Any

from fastai.learner import Learner

from ..callback.resume import callbacks_with_state

__all__ = ['OptimizerAndCallbacks']


class OptimizerAndCallbacks:
    "What fastai's `save_model` and `load_model` take for an optimizer: that of a learner, with the state of its callbacks"
    def __init__(self,
        learn: Learner, # Has an optimizer
    ):
        self.opt: Any = learn.opt
        self.callbacks = callbacks_with_state(learn)
        self.found: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        "The optimizer's, and under `callbacks` that of every callback that has one"
        # fastai's optimizers look at their own entries alone
        kept = {name: cb.state_dict() for name, cb in self.callbacks.items()}
        return self.opt.state_dict() | (dict(callbacks=kept) if kept else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "The optimizer's at once, that of the callbacks by `load_callbacks`"
        self.found = state.get('callbacks', {})
        self.opt.load_state_dict(state)

    def load_callbacks(self) -> None:
        "The state of those callbacks that are here and in the file"
        # not in `load_state_dict`, whose errors `load_model` turns into a warning
        for name in self.callbacks.keys() & self.found.keys(): self.callbacks[name].load_state_dict(self.found[name])
