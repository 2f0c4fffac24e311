"Explainers by gradients instead of rules: gradient × input, integrated gradients"
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from .engine import Traced, leaf, undisturbed
from .explainer import Explainer
from .lrp import explained_scores, features_of
from .weights import contrast, relevance_start

__all__ = ['GradientXInput', 'IntegratedGradients', 'Start']

Start = Literal['log-odds', 'contrast']


class _ConstantStatistics(TorchFunctionMode):
    """Parameters are constants in full precision, and so are batch statistics.

    A score of a batch norm on batch statistics depends on the whole batch: the gradient of the sum of all scores would be that
    of a constant.
    """
    def __torch_function__(self, func, types, args=(), kwargs=None):
        args, kwargs = tree_map(self._constant, args), tree_map(self._constant, kwargs or {})
        if func.__name__ == 'batch_norm': return self._batch_norm(*args, **kwargs)
        if func.__name__ == 'add_' and not args[0].requires_grad: return torch.add(*args, **kwargs)
        return func(*args, **kwargs)

    @staticmethod
    def _constant(t: Any) -> Any:
        if not isinstance(t, Tensor): return t
        if isinstance(t, nn.Parameter): t = t.detach()
        return t.float() if t.dtype in (torch.half, torch.bfloat16) else t

    @staticmethod
    def _batch_norm(x, mean=None, var=None, weight=None, bias=None, training=False, momentum=.1, eps=1e-5):
        if training or mean is None:
            dims = [d for d in range(x.ndim) if d != 1]
            mean, var = x.detach().mean(dims), x.detach().var(dims, unbiased=False)
        return F.batch_norm(x, mean, var, weight, bias, False, 0., eps)


class GradientXInput(Explainer):
    """Gradient × input (Shrikumar et al. 2016): R = Σ_c R_c · x ∂s_c/∂x, with R_c of equation (2) of Sun et al. 2020.

        R = GradientXInput()(model, f_p)    # of the processed features, detached

    With `start='contrast'` the pixels of images are explained by the gradient of a class's log-odds, R = x · ∂log-odds/∂x.
    Batch statistics count as constants. The model stays as it is.
    """
    def __init__(self,
        eps: float = 1e-3, # Keeps the logarithm of equation (2) finite
        start: Start = 'log-odds', # R_c at the class's own score; 'contrast': derivatives of its log-odds at all scores
    ):
        if start not in get_args(Start): raise ValueError(f'start={start!r}: choose from {get_args(Start)}')
        self.eps, self.start = eps, start

    def __call__(self, model: nn.Module, f_p: Any) -> Tensor:
        "Relevance of the processed features, in the shape of `f_p`'s features; detached"
        net, x = explained_scores(model, f_p), features_of(f_p).detach()
        run = self.trace(net, x, model=model)
        R = self.start_of(run.out)
        if self.fractions == (1.,): return self.finish(run.inputs[0].detach(), run.relevance(R)[0])
        flows = [self.trace(net, f * x, model=model).relevance(R)[0] for f in self.fractions]
        return self.finish(run.inputs[0].detach(), torch.stack(flows).mean(0))

    def start_of(self, scores: Tensor) -> Tensor:
        "R_c of every score `(n_query, n_way)`, in the same shape"
        return relevance_start(scores, self.eps)

    def start_of_output(self, out: Tensor) -> Tensor:
        "Ones, in the shape of the output"
        return torch.ones_like(out)

    def starts(self, scores: Tensor) -> Tensor:
        "The start at each score for each explained class `(n_query, n_way explained, n_way)`"
        return contrast(scores) if self.start == 'contrast' else super().starts(scores)

    def trace(self, net: Callable[..., Tensor], *inputs: Tensor, model: nn.Module | None = None, deep: bool = False) -> Traced:
        "Run `net` so that gradients can be passed back through it"
        if model is None and isinstance(net, nn.Module): model = net
        with undisturbed(inputs[0].device, model):
            leaves = tuple(leaf(x) for x in inputs)
            with _ConstantStatistics(): return Traced(net(*(x.clone() for x in leaves)), leaves)

    def finish(self, x: Tensor, flow: Tensor) -> Tensor:
        "Relevance of `x` from the gradient `(..., *x.shape)` that arrived there"
        return x * flow


class IntegratedGradients(GradientXInput):
    "Integrated gradients (Sundararajan et al. 2017): input × mean gradient on the path from zero, by the midpoint rule"
    def __init__(self,
        steps: int = 8, # Points on the path from zero
        eps: float = 1e-3, # Keeps the logarithm of equation (2) finite
        start: Start = 'log-odds', # See `GradientXInput`
    ):
        if steps < 1: raise ValueError(f'IntegratedGradients(steps={steps}): at least 1')
        super().__init__(eps, start)
        self.fractions = tuple((k + .5) / steps for k in range(steps))
