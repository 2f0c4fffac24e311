"Fine-tuning of a linear classifier and the whole encoder on the support (Guo et al. 2020)"
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encode.encoder import Encoder
from ..methods.base import FewShotModel
from ..methods.registry import register_method
from ..tensors import Pool, plain, pool_vectors, vector_size
from .base import Adaptation, adapted_model, checked_support, register_adaptation, seeded, trainable_copy

__all__ = ['FineTune', 'LinearNet']


@register_method('linear')
class LinearNet(FewShotModel):
    "A linear layer on pooled features; scores `(n_query, n_way)` are of the classes of the support that it was tuned on"
    any_way = False

    def __init__(self,
        encoder: Encoder, # Images to feature maps, with `out_shape`
        n_way: int = 5, # Classes of the support
        n_classes: int = 0, # Ignored: this method has no global classifier
        pool: Pool = 'avg', # How maps become vectors: 'avg' or 'flatten'
    ):
        super().__init__(encoder, n_way, n_classes)
        self.pool = pool
        self.fc = nn.Linear(vector_size(encoder.out_shape, pool), n_way)

    def process(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Tensor:
        "Queries as vectors `(n_query, C)`; the support is not used, since the weights have learned it"
        return pool_vectors(f_query, self.pool)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        "Scores `(n_query, n_way)` of query images; the support is not encoded"
        return self.classify(pool_vectors(self.encode(query_x), self.pool))

    def classify(self, f_p: Tensor) -> Tensor:
        "Scores `(n_query, n_way)`"
        return self.fc(f_p)


@register_adaptation('finetune')
@dataclass(kw_only=True)
class FineTune(Adaptation):
    """Train a new linear classifier and tune the encoder on the support (Guo et al. 2020, section 4.2; IBM/cdfsl-benchmark).

    Minimises cross entropy in batches, with SGD with momentum, dampening and weight decay for the classifier, and plain SGD for
    the encoder, whose batch norms are in training mode. With `freeze` the encoder does not change, and each image is encoded
    once. The defaults are the published settings.
    """
    epochs: int = 100 # Passes over the support
    steps: int | None = None # Total number of batches, instead of `epochs`
    bs: int = 4 # Images per batch
    lr: float = 0.01 # Learning rate of classifier and encoder
    momentum: float = 0.9 # Momentum of the classifier
    dampening: float = 0.9 # Dampening of the momentum, from the second step on
    wd: float = 1e-3 # Weight decay of the classifier
    freeze: bool = False # Tune only the classifier
    seed: int = 0 # Seed of the initial weights and the order of the images

    def __call__(self, model: FewShotModel, support_x: Tensor, support_y: Tensor, query_x: Tensor | None = None) -> LinearNet:
        "A `LinearNet` for the classes of this support, in eval mode"
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
        orders: Iterable[Tensor], # Order of the images `(n_support,)` in each epoch
    ) -> Tensor:
        "Tune both; returns the loss of every step `(steps,)` and leaves the encoder in the mode of tuning"
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
