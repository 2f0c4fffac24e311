"The base class of callbacks that add a loss on feature maps"
from __future__ import annotations

from torch import Tensor

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

    def before_fit(self):
        self.leave()  # an error may have ended the last fit in the middle of a step
        self.run = not self.idle
        if self.run: self.refuse_compiled('overlooks hooks')

    def before_batch(self): self.keep_maps(self.enter())

    def vectors(self) -> Tensor:
        "The pooled features `(n, C)`, in single precision at least"
        return single(pool_vectors(plain(self.maps)))
