"""Training with feature-wise transformations that are learned on pseudo-unseen domains (LFT).

Section IV.C of Sun et al. 2020, after Tseng et al. 2020. With `LRPGuidedCallback` beside it in `cbs`, in either order, the loss
of the pseudo-seen episode is the explanation-guided one: LFT-LRP.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from fastai.torch_core import to_detach, to_device
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import skip_init

from ...kernels.batch_norm import quick_second_derivative
from ...methods.losses import class_numbers
from ...tensors import evaluating, pool_vectors
from ..parts.global_classifier import mean_over_ranks
from ..parts.pseudo_unseen import Every, PseudoUnseen, world_size
from .fixed import FTCallback
from .second_order import Gradients, gradient, second_order_step, sums, with_gradient

__all__ = ['LFTCallback']


class LFTCallback(FTCallback):
    """Learn γ, β of the feature-wise transformations on pseudo-unseen domains (LFT of Table IV; Tseng et al. 2020, Algorithm 1).

    Each step computes the loss of a pseudo-seen episode (of `learn.dls.train`) with transformations, fast weights by one step of
    gradient descent on it, and the loss of a pseudo-unseen episode with the fast weights, in eval mode and without
    transformations. γ and β follow the gradient of the second loss through the fast weights. The model follows that of the first
    loss plus `aux`, the classification of the episode's images among all classes with weight 0.9^(20·epoch // epochs).

    γ, β, the classifier of `aux` and their optimizer are kept between fits and in `state_dict`; `losses` has those of the last
    step. Raises `ValueError` for pseudo-unseen domains without episodes, equal to the training domain or with too few classes,
    for a compiled model, and for synchronised batch norm, which has no second derivative.
    """
    captured = 'takes its pseudo-unseen episodes within the step'
    _stateattrs = (*FTCallback._stateattrs, 'domains', 'ft_opt', 'aux_head', 'losses', '_saved', '_kept')
    domains: Any = None # PseudoUnseen; None after an export
    ft_opt: Any = None # torch.optim.Adam; made on the first batch
    aux_head: Any = None # nn.Linear; made on the first batch
    losses: Mapping[str, Tensor] = {}
    _saved: Mapping[str, Any] | None = None
    _kept: list[list[Any]] = []

    def __init__(self,
        pseudo_unseen: Any, # `DataLoaders` or loaders of episodes of other domains, in a list or in a dict by name
        ft_lr: float = 1e-3, # Learning rate of γ, β
        ft_wd: float = 1e-8, # Weight decay of γ, β
        inner_lr: float | None = None, # Learning rate of the fast weights; None: the current one of each weight
        aux: bool | int = True, # Auxiliary classification among the classes of `dls.vocab`, or among so many; False: none
        every: Every = 'epoch', # Draw the domain each 'epoch' or each 'step', or use 'all' in every step
        seed: int = 0, # Seed of the choice of domains
        **kwargs: Any, # `gamma`, `beta`, `names` of `FTCallback`
    ):
        super().__init__(**kwargs)
        self.domains = PseudoUnseen(pseudo_unseen, every, seed)
        self.ft_lr, self.ft_wd, self.inner_lr, self.aux = ft_lr, ft_wd, inner_lr, aux

    @property
    def aux_parameters(self) -> list[nn.Parameter]:
        "The weights of the auxiliary classifier"
        return [] if self.aux_head is None else list(self.aux_head.parameters())

    def before_fit(self):
        super().before_fit()
        self._kept = []
        if self.domains is None:
            raise ValueError('LFTCallback: an exported learner has no pseudo-unseen domains: replace its callback by a new one')
        self.domains.check(self.dls)

    def before_train(self):
        super().before_train()
        self.domains.start_epoch()
        if self.aux_head is not None: self.aux_head.to(next(self.raw_model.parameters()).device)
        if self.ft_opt is not None: self.ft_opt.load_state_dict(self.ft_opt.state_dict())  # its state follows the device
        if world_size() > 1 and any(isinstance(m, nn.SyncBatchNorm) for m in self.raw_model.modules()):
            raise ValueError('LFTCallback: synchronised batch norm has no second derivative, train with sync_bn=False')

    def after_train(self):
        if not self.idle: self.domains.end_epoch()

    def after_fit(self): self.domains.start_epoch()

    def _build(self) -> None:
        super()._build()
        groups = [dict(params=[p.requires_grad_() for p in self.ft_parameters], lr=self.ft_lr, weight_decay=self.ft_wd)]
        if self.aux:
            self.aux_head = _classifier(self.raw_model, len(self.dls.vocab) if self.aux is True else self.aux)
            groups.append(dict(params=self.aux_parameters, lr=self.ft_lr, weight_decay=0.))
        self.ft_opt = torch.optim.Adam(groups)
        if self._saved is not None: self.load_state_dict(self._saved)

    def _enter(self, step: ExitStack) -> None:
        super()._enter(step)
        step.enter_context(quick_second_derivative(self.raw_model))
        step.enter_context(sdpa_kernel(SDPBackend.MATH))  # fused attention has no second derivative
        if self.aux_head is not None: self.keep_maps(step)

    def after_loss(self):
        if self.idle or not self.loss_grad.requires_grad: return
        loss, scale = self.loss_grad.as_subclass(Tensor), self._loss_scale()
        lrs = self._learning_rates()
        aux_loss, aux, head = self._auxiliary(list(lrs), scale)
        seen, ft = second_order_step(loss, list(lrs), list(lrs.values()), self.ft_parameters, self._unseen_losses, scale)
        # where only the second derivative left the range of half precision, mixed precision does not skip the step
        if scale is not None: ft = [g.nan_to_num(0., 0., 0.) for g in ft]
        self._kept.append([*ft, *head])
        # fastai's backward hands these gradients on; the graph is done with
        self.learn.loss_grad = with_gradient(loss.detach() + aux_loss, list(lrs), sums(seen, aux))
        self.learn.loss = self.learn.loss.detach()
        self.learn.pred = to_detach(self.learn.pred, cpu=False, gather=False)
        self.losses = {**self.losses, 'seen': loss.detach(), 'aux': aux_loss}

    def _learning_rates(self) -> dict[nn.Parameter, float]:
        "The weights that are trained now, with their learning rates of this moment"
        return {p: h['lr'] if self.inner_lr is None else self.inner_lr
                for group, h in zip(self.opt.param_lists, self.opt.hypers, strict=True) for p in group if p.requires_grad}

    def _auxiliary(self, weights: list[nn.Parameter], scale: Tensor | None) -> tuple[Tensor | float, Gradients, Gradients]:
        "The auxiliary loss, and its gradients by the model's weights and by its classifier's"
        if self.aux_head is None: return 0., [None] * len(weights), []
        labels = [class_numbers(y, self.aux_head.out_features, 'LFTCallback: aux', 'train with aux=False')
                  for y in (self.xb[1], self.yb[0])]
        scores = self.aux_head(pool_vectors(self.maps.as_subclass(Tensor)))
        loss = 0.9**(20 * self.epoch // self.n_epoch) * F.cross_entropy(scores, torch.cat(labels))
        grads = gradient(loss, [*weights, *self.aux_parameters], scale, retain_graph=True)
        return loss.detach(), grads[:len(weights)], grads[len(weights):]

    def _unseen_losses(self, fast: list[Tensor]) -> Iterator[Tensor]:
        "The loss of each pseudo-unseen episode of this step under the fast weights, shares of their mean"
        model = self.raw_model
        names = {p: name for name, p in model.named_parameters()}
        state = {names[p]: w for p, w in zip(self._learning_rates(), fast, strict=True) if p in names}
        total = torch.zeros((), device=self.loss_grad.device)
        for batch in self.domains.episodes(self.iter):
            *xb, y = to_device(batch, total.device, non_blocking=True)
            with evaluating(model): scores = functional_call(model, state, tuple(xb))
            loss = self.loss_func(scores, y).as_subclass(Tensor) / len(self.domains)
            total = total + loss.detach()
            yield loss
        self.losses = {**self.losses, 'unseen': total}

    def after_cancel_step(self):
        self._kept = []  # mixed precision found an overflow: these gradients are as useless as the model's

    def after_step(self):
        kept, self._kept = self._kept, []
        if not kept: return
        grads = kept[0] if len(kept) == 1 else [torch.stack(parts).mean(0) for parts in zip(*kept, strict=True)]
        grads = mean_over_ranks(grads)
        params = [*self.ft_parameters, *self.aux_parameters]
        for p, g in zip(params, grads, strict=True): p.grad = g
        for group in self.ft_opt.param_groups[1:]: group['lr'] = self.opt.hypers[-1]['lr']
        self.ft_opt.step()
        self.ft_opt.zero_grad()
        # fastai would keep zeros in their place, through the memory peak of the next step
        for w in self._learning_rates(): w.grad = None

    def state_dict(self) -> dict[str, Any]:
        "γ, β, the auxiliary classifier, their optimizer, and where the pseudo-unseen domains are"
        domains = {} if self.domains is None else {'domains': self.domains.state_dict()}
        if not self.transformations: return {**(self._saved or {}), **domains}
        return dict(transformations=self._transformations_state(),
                    aux_head=self.aux_head.state_dict() if self.aux else None,
                    opt=self.ft_opt.state_dict(), **domains)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        "Restore a state. Raises `ValueError` if it belongs to other transformations or another `aux`"
        if self.domains is not None and 'domains' in state: self.domains.load_state_dict(state['domains'])
        self._saved = state
        if not self.transformations or 'transformations' not in state: return  # until they are made
        if (state['aux_head'] is None) == bool(self.aux):
            raise ValueError(f'LFTCallback(aux={self.aux}): the state was saved {"without" if self.aux else "with"} aux')
        self._load_transformations(state['transformations'])
        if self.aux: self.aux_head.load_state_dict(state['aux_head'])
        self.ft_opt.load_state_dict(state['opt'])
        self._saved = None


def _classifier(model: nn.Module, n_classes: int) -> nn.Linear:
    "A linear layer on the encoder's channels that starts at zero: alike in every process, and nothing drawn from the generators"
    n_features: Any = getattr(getattr(model, 'encoder', None), 'num_features', None)
    if n_features is None:
        raise ValueError(f'LFTCallback: {type(model).__name__} has no `encoder` with `num_features` for the auxiliary '
                         'classification: train with aux=False')
    p = next(model.parameters())
    head = skip_init(nn.Linear, n_features, n_classes, device=p.device, dtype=p.dtype)
    for p in head.parameters(): nn.init.zeros_(p)
    return head
