"What callbacks share that add a loss on the feature maps of a training step"
from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...tensors import plain, pool_vectors, single
from ..model import ModelCallback
from ..order import ADDED

__all__ = ['EncodedCallback']


class EncodedCallback(ModelCallback):
    """A callback with a loss on what the encoder gave for the images of a training step, added to the loss that is there.

    For whatever model has an `encoder`: few-shot models, and the classifier of the pre-training. Its hook is on the model during
    a step alone.
    """
    order = ADDED
    _stateattrs: tuple[str, ...] = ('maps', '_hook')
    maps: Any = None # Of the first pass in training mode `(n, C, H, W)`, in an episode the support before the queries
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
        "The features `(n, C)`, averaged over the positions, in single precision at least"
        return single(pool_vectors(plain(self.maps)))

    def after_cancel_batch(self): self._leave()
    def after_batch(self): self._leave()

    def _leave(self) -> None:
        if self._hook is not None: self._hook.remove()
        self.maps = self._hook = None
