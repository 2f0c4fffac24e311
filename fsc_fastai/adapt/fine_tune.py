"Fine-tuning on the support: a linear classifier, and the whole encoder with it (Guo et al. 2020)"
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..methods.base import FewShotModel
from ..tensors import plain, pool_vectors
from .base import Adaptation, adapted_model, checked_support, register_adaptation, seeded, trainable_copy
from .linear_net import LinearNet

__all__ = ['FineTune']


@register_adaptation('finetune')
@dataclass(kw_only=True)
class FineTune(Adaptation):
    """A new linear classifier on the support, and the encoder tuned with it (Guo et al. 2020, section 4.2; IBM/cdfsl-benchmark).

    Passes over the support in batches by cross entropy. The classifier: SGD with momentum, dampening and weight decay; the
    encoder: plain SGD, its batch norms in training mode. Afterwards both are in eval mode. With `freeze` the encoder stays as
    it is, and each image is encoded once. Defaults are the published settings.
    """
    epochs: int = 100 # Passes over the support
    steps: int | None = None # Batches in all, in the place of `epochs`
    bs: int = 4 # Images per batch
    lr: float = 0.01 # Of classifier and encoder
    momentum: float = 0.9 # Of the classifier
    dampening: float = 0.9 # Of its momentum, from the second step on
    wd: float = 1e-3 # Weight decay of the classifier
    freeze: bool = False # Tune the classifier alone
    seed: int = 0 # Of its start and of the order of the images

    def __call__(self, model: FewShotModel, support_x: Tensor, support_y: Tensor, query_x: Tensor | None = None) -> LinearNet:
        "A `LinearNet` for the classes of this support"
        y, x = checked_support(self, support_y), plain(support_x)
        with seeded(self.seed, x.device):
            adapted = adapted_model(LinearNet, trainable_copy(model.encoder), int(y.max()) + 1).to(x)
            n = self.epochs if self.steps is None else self.steps  # an epoch has a step at least
            self.tune(adapted.encoder, adapted.fc, x, y, (torch.randperm(len(y)).to(y.device) for _ in range(n)))
        return adapted.eval().requires_grad_(False)

    def tune(self,
        encoder: nn.Module, # Tuned in place, unless `freeze`
        fc: nn.Linear, # Tuned in place
        x: Tensor, # Images `(n_support, channels, height, width)`
        y: Tensor, # Labels `(n_support,)`
        orders: Iterable[Tensor], # Positions `(n_support,)` of each epoch
    ) -> Tensor:
        "The loss of every step; the encoder is left in the mode in which it was tuned"
        encoder.train(not self.freeze)
        optimizers = [torch.optim.SGD(fc.parameters(), self.lr, self.momentum, self.dampening, self.wd)]
        if self.freeze:
            with torch.no_grad(): features = pool_vectors(encoder(x))
        else: optimizers.append(torch.optim.SGD(encoder.parameters(), self.lr))
        losses: list[Tensor] = []
        for order in orders:
            for batch in order.split(self.bs):
                if self.steps is not None and len(losses) >= self.steps: return torch.stack(losses)
                f = features[batch] if self.freeze else pool_vectors(encoder(x[batch]))
                loss = F.cross_entropy(fc(f), y[batch])
                for o in optimizers: o.zero_grad()
                loss.backward()
                for o in optimizers: o.step()
                losses.append(loss.detach())
        return torch.stack(losses)
