"The base class of callbacks that add a loss on feature maps"
from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...tensors import plain, pool_vectors, single
from ..model import ModelCallback
from ..order import ADDED

__all__ = ['EncodedCallback']


class EncodedCallback(ModelCallback):
    """A callback that adds a loss on the feature maps of a training step.

    Works for any model with an `encoder`: few-shot models and the classifier of the pre-training. Its hook is on the model only
    during a step.
    """
    order = ADDED
    _stateattrs: tuple[str, ...] = ('maps', '_hook')
    maps: Any = None # Maps of the first training pass `(n, C, H, W)`; in an episode the support comes first
    _hook: Any = None

    def before_fit(self):
        self._leave()  # an error may have ended the last fit in the middle of a step
        self.run = not self.idle
        if self.run: self.refuse_compiled('overlooks hooks')

    def before_batch(self):
        self._leave()
        def keep(encoder: nn.Module, args: tuple, maps: Tensor) -> None:
            if self.maps is None and encoder.training: self.maps = maps
        self._hook = self.raw_model.encoder.register_forward_hook(keep)

    def vectors(self) -> Tensor:
        "The pooled features `(n, C)`, in single precision at least"
        return single(pool_vectors(plain(self.maps)))

    def after_cancel_batch(self): self._leave()
    def after_batch(self): self._leave()

    def _leave(self) -> None:
        if self._hook is not None: self._hook.remove()
        self.maps = self._hook = None
