"PMF: the encoder is tuned so that prototypes of the support classify its augmented views (Hu et al. 2022)"
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..methods.base import FewShotModel, class_means
from ..methods.proto import ProtoNet
from ..tensors import cosine, plain, pool_vectors
from .augmentations import pmf_augment
from .base import Adaptation, adapted_model, checked_support, register_adaptation, seeded, trainable_copy

__all__ = ['PMF']


@register_adaptation('pmf')
@dataclass(kw_only=True)
class PMF(Adaptation):
    """Tune the encoder by Adam: prototypes of the plain support images classify augmented ones (Hu et al. 2022).

    Scores are scale·(cosine + bias), and gradients also pass through the prototypes. Batch norms use running statistics. The
    learning rate is the one of 0 and `lrs` that classifies the support best after tuning on the first example of each class.
    With one shot there is nothing to choose by, so it is 0. The authors' scripts choose it by labelled queries of a domain.
    """
    steps: int = 50 # Steps of Adam
    lr: float | None = None # Learning rate; None: chosen on the support
    lrs: tuple[float, ...] = (1e-4, 5e-4, 1e-3) # Learning rates to choose from, besides 0
    search_steps: int = 50 # Steps of Adam for each choice
    scale: float = 10. # Factor of the cosine
    bias: float = 0. # Added to the cosine
    augment: bool = True # Augment the support in each step by `pmf_augment`
    seed: int = 0 # Seed of the augmentations

    def __call__(self, model: FewShotModel, support_x: Tensor, support_y: Tensor, query_x: Tensor | None = None) -> ProtoNet:
        "A `ProtoNet` with cosine scores and the tuned encoder"
        y, x = checked_support(self, support_y), plain(support_x)
        with seeded(self.seed, x.device):
            encoder, lr = self.trainable(model.encoder), self.lr
            if lr is None: lr, _ = self.choose_lr(model.encoder, x, y)
            self.tune(encoder, x, y, self._views(x, self.steps), lr)
        return adapted_model(ProtoNet, self.finished(encoder), int(y.max()) + 1, distance='cosine', scale=self.scale,
                             bias=self.bias).eval().requires_grad_(False)

    def trainable(self, encoder: nn.Module) -> nn.Module:
        "A copy in eval mode, of which what takes a gradient is tuned"
        return trainable_copy(encoder)

    def finished(self, encoder: nn.Module) -> nn.Module:
        "The tuned copy, as it is to be used"
        return encoder

    def _views(self, x: Tensor, steps: int) -> Iterable[Tensor]:
        return (pmf_augment(x) if self.augment else x for _ in range(steps))

    def scores(self,
        prototypes: Tensor, # `(n_way, d)`
        query: Tensor, # `(n_query, d)`
    ) -> Tensor:
        "Scores `(n_query, n_way)`: scale·(cosine + bias)"
        return self.scale * (cosine(query[:, None], prototypes[None]) + self.bias)

    def tune(self,
        encoder: nn.Module, # Tuned in place, in eval mode
        x: Tensor, # Images `(n_support, channels, height, width)`
        y: Tensor, # Labels `(n_support,)`
        views: Iterable[Tensor], # The augmented support of each step
        lr: float, # Learning rate; with 0 nothing is done
    ) -> Tensor:
        "Tune the encoder; returns the loss of every step `(steps,)`"
        if lr == 0: return x.new_zeros(0)
        optimizer, losses = torch.optim.Adam(encoder.parameters(), lr), []
        for view in views:
            # in eval mode images do not see each other, so both halves may pass together
            f = pool_vectors(encoder(x if view is x else torch.cat([x, view])))
            loss = F.cross_entropy(self.scores(class_means(f[:len(y)], y), f[-len(y):]), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses) if losses else x.new_zeros(0)

    def choose_lr(self,
        encoder: nn.Module, # Copied for each learning rate
        x: Tensor, # Images of the support
        y: Tensor, # Their labels
    ) -> tuple[float, list[float]]:
        "The learning rate, and the accuracy of 0 and each of `lrs` on the other examples; a later one must beat all before it"
        first = torch.stack([(y == k).nonzero()[0, 0] for k in range(int(y.max()) + 1)])
        others = torch.ones_like(y, dtype=torch.bool).index_fill_(0, first, False)
        if not others.any(): return 0., []
        chosen, found = 0., []
        for lr in (0., *self.lrs):
            tuned = self.trainable(encoder)
            self.tune(tuned, x[first], y[first], self._views(x[first], self.search_steps), lr)
            with torch.no_grad(): f = pool_vectors(tuned(torch.cat([x[first], x[others]])))
            right = self.scores(f[:len(first)], f[len(first):]).argmax(1) == y[others]
            found.append(float(right.double().mean()))
            if len(found) > 1 and found[-1] > max(found[:-1]): chosen = lr
        return chosen, found
