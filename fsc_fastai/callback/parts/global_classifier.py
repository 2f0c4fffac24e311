"A classifier of an episode's images among all classes of the training domain, separate from the model"
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...methods.losses import class_numbers
from ...tensors import full_precision, plain, pool_vectors, single
from ..model import ModelCallback
from .pseudo_unseen import world_size

__all__ = ['GlobalClassifier', 'ClassifierCallback', 'class_numbers', 'mean_over_ranks']


def mean_over_ranks(
    tensors: Sequence[Tensor], # Tensors of the same shapes in all processes
) -> list[Tensor]:
    "The mean of each tensor over the processes of a distributed training"
    if world_size() < 2: return list(tensors)
    flat = torch.cat([t.flatten() for t in tensors])
    torch.distributed.all_reduce(flat)
    return [part.view_as(t) for part, t in zip((flat / world_size()).split([t.numel() for t in tensors]), tensors, strict=True)]


class GlobalClassifier:
    """A linear classifier of pooled features among all training classes, with an Adam of its own.

    Model and classifier learn separately: each treats the other as constant, and the model's optimizer does not include the
    classifier. It is the same in every process and does not draw from the global random number generators.
    """
    def __init__(self,
        model: Any, # A few-shot model whose `encoder` has `num_features`
        n_classes: int, # Classes of the training domain
        lr: float = 1e-3, # Learning rate of steps that are given none
        seed: int = 0, # Seed of the initial weights
    ):
        p = next(model.parameters())
        n_features = model.encoder.num_features
        start = torch.rand(n_classes, n_features + 1, generator=torch.Generator().manual_seed(seed)).to(p)
        weight, bias = ((2 * start - 1) / n_features**.5).split([n_features, 1], 1)
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias[:, 0].clone())
        self.n_classes, self.opt = n_classes, torch.optim.Adam([self.weight, self.bias], lr)
        self.kept: list[list[Tensor]] = []

    def loss(self,
        maps: Tensor, # Feature maps `(n, C, H, W)`
        y: Tensor, # Labels `(n,)` within the training domain
    ) -> Tensor:
        "Cross entropy whose gradient reaches only the maps"
        return self._loss(maps, y, self.weight.detach(), self.bias.detach())

    def _loss(self, maps: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with full_precision(maps): return F.cross_entropy(F.linear(single(pool_vectors(plain(maps))), weight, bias), y)

    def learn(self, maps: Tensor, y: Tensor) -> None:
        "Accumulate the gradient of the cross entropy with respect to the classifier until `step`"
        loss = self._loss(maps.detach(), y, self.weight, self.bias)
        self.kept.append(list(torch.autograd.grad(loss, [self.weight, self.bias])))

    def drop(self) -> None:
        "Discard the accumulated gradients, after an overflow in mixed precision"
        self.kept = []

    def step(self, lr: float) -> None:
        "Update the classifier with the mean of the accumulated gradients over all processes"
        kept, self.kept = self.kept, []
        if not kept: return
        grads = mean_over_ranks([torch.stack(parts).mean(0) for parts in zip(*kept, strict=True)])
        for p, g in zip((self.weight, self.bias), grads, strict=True): p.grad = g
        for group in self.opt.param_groups: group['lr'] = lr
        self.opt.step()
        self.opt.zero_grad()

    def to(self, device: torch.device) -> None:
        "Move weights and optimizer state to a device"
        for p in (self.weight, self.bias): p.data = p.data.to(device)
        self.opt.load_state_dict(self.opt.state_dict())

    def state_dict(self) -> dict[str, Any]:
        "The state of weights and optimizer"
        return dict(weight=self.weight.detach(), bias=self.bias.detach(), opt=self.opt.state_dict())

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        "Restore a state. Raises `ValueError` for another number of classes or features"
        if state['weight'].shape != self.weight.shape:
            raise ValueError(f'The saved classifier has the shape {tuple(state["weight"].shape)} (classes, features), this one '
                             f'{tuple(self.weight.shape)}')
        self.weight.copy_(state['weight'])
        self.bias.copy_(state['bias'])
        self.opt.load_state_dict(state['opt'])


class ClassifierCallback(ModelCallback):
    """A callback with a global classifier, which is made in the first fit, kept between fits and in `state_dict`.

    The classifier is updated when the model is, with the learning rate of the last parameter group.
    """
    _stateattrs = (*ModelCallback._stateattrs, 'global_classifier', '_saved')
    global_classifier: Any = None # A `GlobalClassifier`; None before the first fit and after an export
    _saved: Mapping[str, Any] | None = None

    def __init__(self,
        n_classes: int | None = None, # Classes of the classifier; None: those of `dls.vocab`
    ):
        self.n_classes = n_classes

    def before_fit(self):
        if self.global_classifier is None:
            n = len(self.dls.vocab) if self.n_classes is None else self.n_classes
            self.global_classifier = GlobalClassifier(self.raw_model, n)
            if self._saved is not None: self.load_state_dict(self._saved)
        self.global_classifier.drop()

    @property
    def class_labels(self) -> Tensor:
        "Labels of support and queries among all training classes"
        return torch.cat([class_numbers(y, self.global_classifier.n_classes, type(self).__name__, 'use these')
                          for y in (self.xb[1], self.yb[0])])

    def before_train(self): self.global_classifier.to(next(self.raw_model.parameters()).device)
    def after_cancel_step(self): self.global_classifier.drop()
    def after_step(self): self.global_classifier.step(self.opt.hypers[-1]['lr'])

    def state_dict(self) -> dict[str, Any]:
        "The state of the classifier and its optimizer"
        return dict(self._saved or {}) if self.global_classifier is None else self.global_classifier.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        "Restore a state. Raises `ValueError` for another number of classes or features"
        self._saved = state or None
        if self.global_classifier is None or not state: return  # until it is made
        self.global_classifier.load_state_dict(state)
        self._saved = None
