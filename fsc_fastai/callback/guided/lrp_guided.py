"Explanation-guided training (Sun et al. 2020, section III)"
from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from fastai.learner import Metric
from torch import Tensor, nn

from ...explain.closed_form import head_of
from ...explain.lrp import LRP
from ...explain.weights import Over
from ...methods.base import FewShotModel
from ..model import ModelCallback, scores_of, single_output
from ..order import GUIDED
from .guided_loss import Explainer, weighted_pass, with_scores

__all__ = ['LRPGuidedCallback', 'StepLoss']

SecondPass = Callable[[Any, Any], Any]


class StepLoss(Metric):
    "Mean of a part of the training loss over the epoch: a column of the recorder beside the metrics"
    def __init__(self, name: str): # Of the column
        self._name, self.total, self.count = name, torch.zeros(()), 0

    @property
    def name(self) -> str: return self._name

    @property
    def value(self) -> Tensor | None: return self.total / self.count if self.count else None

    def add(self, loss: Tensor) -> None:
        "Count the loss of one more step"
        self.total, self.count = self.total.to(loss.device) + loss.detach().as_subclass(Tensor), self.count + 1

    def start_epoch(self) -> None:
        "Forget the epoch before"
        self.total, self.count = torch.zeros(()), 0

    # the recorder resets and accumulates in validation, where nothing is explained
    def reset(self) -> None: pass
    def accumulate(self, learn) -> None: pass


class LRPGuidedCallback(ModelCallback):
    """Train with L = ξ·L(y, p) + λ·L(y, p_lrp), where p_lrp = classify(w ⊙ f_p) and w = 1 + R/max|R| (equations 7 to 9).

    For any `FewShotModel` whose forward pass uses its `forward_head`. The default ξ and λ are the published ones: 0 and 1 for
    cross attention, otherwise 1 and 0.5 for one shot, and 1 and 1 for more. Both losses are columns of the recorder
    (`plain_loss`, `guided_loss`), and `losses` has those of each step. Does nothing in validation, under `lr_find` and for
    predictions. Raises `TypeError` for another model, and `ValueError` for a compiled model; its encoder may be compiled.
    """
    order = GUIDED
    captured = 'xi', 'lam', 'explainer', 'over', 'second_pass'
    _stateattrs = (*ModelCallback._stateattrs, 'losses', '_seen', '_guided', '_losses')
    losses: list[tuple[Tensor, Tensor]] = [] # Plain and guided loss of each step of the last fit
    _seen: dict[str, Any] = {} # by the first pass
    _guided: Any = None # output of the second pass
    _losses: tuple[Tensor, Tensor] | None = None # of this step

    def __init__(self,
        xi: float | None = None, # ξ, weight of the plain loss; default: by method
        lam: float | None = None, # λ, weight of the explanation-guided loss; default: by method and shot
        explainer: Explainer | None = None, # `explainer(model, f_p)` to the relevance of f_p's features; default: `LRP()`
        over: Over = 'channels', # The maximum of |R| is taken over 'channels', or over the whole 'map'
        second_pass: SecondPass | None = None, # `second_pass(model, f_p)` instead of classify(w ⊙ f_p): `PublishedCANPass()`
    ):
        if over not in get_args(Over): raise ValueError(f'over={over!r}: choose from {get_args(Over)}')
        if second_pass is not None and explainer is not None:
            raise ValueError('LRPGuidedCallback: second_pass explains and weights by itself, give either it or an explainer')
        self.xi, self.lam, self.explainer, self.over = xi, lam, LRP() if explainer is None else explainer, over
        self.second_pass = second_pass

    def before_fit(self):
        self.leave()  # an error may have ended the last fit in the middle of a step
        self._drop_columns()
        self.run = not hasattr(self.learn, 'lr_finder') and not hasattr(self.learn, 'gather_preds')
        if not self.run: return
        self.refuse_compiled('keeps its processed features out of reach', spared='encoder')
        if not isinstance(self.raw_model, FewShotModel):
            raise TypeError('LRPGuidedCallback needs a FewShotModel, which shows its processed features and has '
                            f'`classify(f_p)`, found {type(self.raw_model).__name__}: let it inherit from FewShotModel')
        self.losses = []
        self.learn.metrics = self.learn.metrics + [StepLoss('plain_loss'), StepLoss('guided_loss')]

    def before_train(self):
        for m in self._columns(): m.start_epoch()

    def before_batch(self):
        model, watch = self.raw_model, self.enter()
        watch.callback(model.register_processed_hook(self._see).remove)
        head = head_of(model)
        for part in head.parts if head is not None else ():
            watch.callback(model.get_submodule(part).register_forward_hook(self._see_trace).remove)
        # called however the forward pass ends: an error leaves nothing on the model. A pass in eval mode is another callback's
        watch.callback(model.register_forward_hook(lambda m, *_: watch.close() if m.training else None, always_call=True).remove)

    def _see(self, model: FewShotModel, f_p: Any) -> None:
        if model.training: self._seen.setdefault('f_p', f_p)

    def _see_trace(self, part: nn.Module, args: tuple, output: tuple[Tensor, Any]) -> None:
        if part.training: self._seen.setdefault('trace', output[1])

    def after_pred(self):
        "Steps 1 to 4 of section III"
        model, f_p = self.raw_model, self._seen.get('f_p')
        if f_p is None:
            raise TypeError(f'LRPGuidedCallback: the forward pass of {type(model).__name__} did not go through `forward_head`, '
                            'so there are no processed features to explain')
        plain = self.learn.pred
        guided = (self.second_pass or self._weighted_pass)(model, f_p)
        self._guided = with_scores(plain, scores_of(guided))
        self._seen.clear()

    def _weighted_pass(self, model: Any, f_p: Any) -> Any:
        "classify(w ⊙ f_p), equations (7) and (8)"
        traced: dict[str, Any] = {}
        if isinstance(self.explainer, LRP) and 'trace' in self._seen: traced['traced'] = scores_of(self.pred), self._seen['trace']
        return weighted_pass(model, f_p, self.explainer, self.over, **traced)

    def after_loss(self):
        if self._guided is None: return
        plain, guided = self.learn.loss_grad, self.learn.loss_func(single_output(self._guided), *self.learn.yb)
        self._guided = None
        xi, lam = self.weights
        # with ξ = 0 the backward pass leaves the plain loss out
        self.learn.loss_grad = lam * guided + xi * plain if xi else lam * guided
        self.learn.loss = self.learn.loss_grad.clone()
        self._losses = plain.detach(), guided.detach()

    def before_step(self):
        "Not with the loss, for a step that is replayed knows tensors alone"
        if self._losses is None: return
        self.losses.append((self._losses[0].clone(), self._losses[1].clone()))
        for m, loss in zip(self._columns(), self.losses[-1], strict=True): m.add(loss)

    @property
    def weights(self) -> tuple[float, float]:
        "ξ and λ for this episode: the given ones, or the published ones of its method and shot"
        one_shot = self.learn.xb[1].shape[0] <= scores_of(self.learn.pred).shape[1]
        xi, lam = self.raw_model.guidance[0 if one_shot else 1]
        return xi if self.xi is None else self.xi, lam if self.lam is None else self.lam

    def after_fit(self):
        self._drop_columns()
        self._losses = None

    def leave(self) -> None:
        "Take everything off the model, and forget the step"
        super().leave()
        self._seen, self._guided = {}, None

    def _columns(self) -> list[StepLoss]: return [m for m in self.learn.metrics if isinstance(m, StepLoss)]

    def _drop_columns(self) -> None:
        self.learn.metrics = [m for m in self.learn.metrics if not isinstance(m, StepLoss)]
