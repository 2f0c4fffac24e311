"The explanation-guided loss of an episode as one function of tensors (Sun et al. 2020, section III)"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ...explain.closed_form import head_of
from ...explain.lrp import LRP, checked_relevance, features_of, with_features
from ...explain.weights import Over, relevance_weights
from ..model import scores_of

__all__ = ['guided_loss', 'weighted_pass', 'with_scores', 'Explainer']

Explainer = Callable[[nn.Module, Any], Tensor]


def guided_loss(
    model: Any, # A `FewShotModel`
    f_support: Tensor, # Feature maps `(n_support, C, H, W)`
    support_y: Tensor, # Labels `(n_support,)`, or one-hot `(n_support, n_way)`, which compilation needs
    f_query: Tensor, # Feature maps `(n_query, C, H, W)`
    query_y: Tensor, # Labels `(n_query,)`
    loss_func: Callable | None = None, # Takes the model's output and labels; None: the loss of the method
    xi: float = 1., # ξ, weight of the plain loss
    lam: float = 1., # λ, weight of the explanation-guided loss
    explainer: Explainer | None = None, # `explainer(model, f_p)` to the relevance of f_p's features; None: `LRP()`
    over: Over = 'channels', # The maximum of |R| is taken over 'channels', or over the whole 'map'
) -> Tensor:
    """L = ξ·L(y, p) + λ·L(y, p_lrp), from process to loss, equations (7) to (9): `LRPGuidedCallback` for a loop of one's own.

        loss = guided_loss(model, f[:n], one_hot, f[n:], query_y)

    With `LRP()` on a model as it was built, `torch.compile(guided_loss, fullgraph=True)` takes it as a whole.
    """
    explainer, loss_func = explainer or LRP(), loss_func or model.default_loss()
    f_p, traced = model.process(f_support, support_y, f_query), {}
    if isinstance(explainer, LRP) and hasattr(model, 'classify_with_trace') and head_of(model) is not None:
        traced['traced'] = plain, _ = model.classify_with_trace(f_p)
    else: plain = output_of(model, f_p)
    guided = scores_of(weighted_pass(model, f_p, explainer, over, **traced))
    of_guided = lam * loss_func(with_scores(plain, guided), query_y)
    return of_guided + xi * loss_func(plain, query_y) if xi else of_guided


def output_of(
    model: Any, # A `FewShotModel`
    f_p: Any, # Processed features
) -> Any:
    "The input of the loss in training"
    return (model.classify if model.scores_only else model.training_output)(f_p)


def weighted_pass(
    model: Any, # A `FewShotModel`
    f_p: Any, # Its processed features
    explainer: Explainer, # `explainer(model, f_p)` to the relevance of f_p's features
    over: Over = 'channels', # The maximum of |R| is taken over 'channels', or over the whole 'map'
    **traced: Any, # For an `LRP`: `traced`, what `classify_with_trace` returned
) -> Any:
    "classify(w ⊙ f_p), equations (7) and (8)"
    w = relevance_weights(checked_relevance(explainer(model, f_p, **traced), f_p, explainer), over)
    return output_of(model, with_features(f_p, w * features_of(f_p)))


def with_scores(
    plain: Any, # Output of the first pass: scores, or a tuple that starts with them
    scores: Tensor, # Of the second pass
) -> Any:
    "The output of the second pass: what a method gives its loss besides the scores is that of the first one"
    return scores if isinstance(plain, Tensor) else (scores, *plain[1:])
