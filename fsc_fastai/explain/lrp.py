"Layer-wise relevance propagation of any model with `classify`, or of any network"
from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..methods.base import Processed
from .closed_form import Head, head_of
from .composite import Composite, Selector, epsilon_everywhere, paper_composite
from .engine import Traced, trace, undisturbed
from .explainer import Explainer
from .rules import Rule
from .settings import Attention, Form, Norm, Settings
from .weights import contrast, relevance_start

__all__ = ['LRP', 'checked_relevance', 'features_of', 'with_features', 'explained_scores']

Start = Literal['log-odds', 'logits', 'contrast']


def features_of(f_p: Any) -> Tensor:
    "The tensor of processed features that is explained: `f_p` itself, or its `features`"
    return f_p if isinstance(f_p, Tensor) else f_p.features


def with_features(
    f_p: Any, # Processed features, a tensor or a `Processed`
    features: Tensor, # The new features
) -> Any:
    "`f_p` with other features, in a form that `classify` accepts"
    return features if isinstance(f_p, Tensor) else f_p.with_features(features)


class LRP(Explainer):
    """Layer-wise relevance propagation (Sun et al. 2020, section III): ε-rule for linear layers, α-rule for convolutions.

        explain_images(model, *episode, LRP.faithful())     # of pixels, as `learn.explain` does by default
        R = LRP()(model, f_p)                               # of the processed features, as training needs it
        R = LRP().relevance(net, x)                         # of the input of any network, for its output
        LRP(composite={0: ZBox(-2., 2.), 'head.*': Gamma()})  # other rules for some layers

    The model does not change. A layer without a rule raises `NotImplementedError`, which says how to add a rule.
    """
    def __init__(self,
        eps: float = 1e-3, # ε of linear layers and sums, equation (4), and of the start, equation (2)
        alpha: float = 1., # α of convolutions, equation (5)
        beta: float | None = None, # Default: α − 1
        composite: Composite | Mapping[Selector, Rule] | None = None, # Rules that differ from these
        start: Start = 'log-odds', # Equation (2); 'logits': the scores themselves; 'contrast': for images, see `starts`
        norm: Norm = 'identity', # Treatment of norms: 'identity', 'signed' or 'fold' (see `Settings`)
        form: Form | None = None, # 'R' or 'g' (see `Settings`); default: 'R' for classifiers, 'g' for encoders
        engine: bool = False, # Use the engine even for classifiers with a closed form
        encoder: Composite | Mapping[Selector, Rule] | None = None, # Other rules for deep networks only, where 0 is at the pixels
        attention: Attention = 'constant', # Treatment of softmax: 'constant' or 'attnlrp' (see `Settings`)
    ):
        if start not in get_args(Start): raise ValueError(f'start={start!r}: choose from {get_args(Start)}')
        self.eps, self.start, self.engine = eps, start, engine
        self.as_published = composite is None and alpha == 1 and not beta and norm == 'identity' and form != 'g'
        rules = _on(paper_composite(eps, alpha, beta), composite)
        self.settings = Settings(rules, eps, norm, form or 'R', attention)
        self.deep = replace(self.settings, composite=_on(rules, encoder), form=form or 'g')
        self.own_score = start != 'contrast'

    @classmethod
    def published(cls) -> LRP:
        "The rules of Sun et al. 2020, section III, which guided training follows"
        return cls()

    @classmethod
    def faithful(cls,
        eps: float = 1e-3, # ε of all layers
    ) -> LRP:
        """What explains pixels by default: the ε-rule in all layers, norms folded, from the log-odds of a class.

        The most faithful to pixels of what explains a class within four forward passes, as measured in docs/explanations.md.
        """
        return cls(eps, composite=epsilon_everywhere(eps), start='contrast', norm='fold')

    def __call__(self,
        model: nn.Module, # Has `classify`
        f_p: Any, # Processed features, a tensor or a `Processed`
        traced: tuple[Tensor, Any] | None = None, # Result of `model.classify_with_trace(f_p)`, to save this pass
    ) -> Tensor:
        "Relevance of the processed features for the scores of every class, in the shape of `f_p`'s features; detached"
        head = head_of(model)
        if head is not None and self._fits(head):
            # without layers, or on a trace, no module runs: no buffer and no random number has to be kept
            device = device_of(model, f_p)
            with (undisturbed(device, model) if head.has_layers and traced is None else nullcontext(),
                  torch.inference_mode(False), torch.autocast(device.type, enabled=False), torch.no_grad()):
                R = head.relevance(model, f_p, *(traced or scores_and_trace(model, f_p)), self.eps)
            if R is not None: return R
        run = trace(explained_scores(model, f_p), features_of(f_p).detach(), settings=self.settings, model=model)
        return run.relevance(self.start_of(run.out))[0]

    def _fits(self, head: Head) -> bool:
        "Are these the rules that the written-out pass follows?"
        return not self.engine and self.start == 'log-odds' and (self.as_published or not head.has_layers)

    def start_of(self, scores: Tensor) -> Tensor:
        "Relevance of the scores `(n_query, n_way)`, in the same shape"
        return relevance_start(scores, self.eps) if self.start == 'log-odds' else scores.detach()

    def starts(self, scores: Tensor) -> Tensor:
        """The start at each score for each explained class `(n_query, n_way explained, n_way)`.

        As published, R_c of equation (2) at the class's own score. With 'contrast', the contribution of each score to the
        log-odds of the class: what all classes have in common cancels, and evidence for another class counts against this one.
        """
        return scores.detach().unsqueeze(-2) * contrast(scores) if self.start == 'contrast' else super().starts(scores)

    def trace(self, net: Callable[..., Tensor], *inputs: Tensor, model: nn.Module | None = None, deep: bool = False) -> Traced:
        "Run `net` so that relevance can be passed back through it; a deep one in the g-form, unless `form` says otherwise"
        return trace(net, *inputs, settings=self.deep if deep else self.settings, model=model)

    def relevance(self,
        net: Callable[..., Tensor], # A module, or any function of a tensor
        x: Tensor, # Its input
        R: Tensor | None = None, # Relevance of the output, one start, or several along a first dimension; default: see `start`
    ) -> Tensor:
        "Relevance of the input of any network, with a first dimension where `R` has one; detached"
        run = self.trace(net, x, deep=True)
        return run.relevance(self.start_of(run.out) if R is None else R)[0]


def _on(base: Composite, rules: Composite | Mapping[Selector, Rule] | None) -> Composite:
    "`rules`, and those of `base` where they select nothing"
    if rules is None: return base
    if not isinstance(rules, Composite): return Composite(rules, base)
    return rules if rules.base else rules.on(base)


def checked_relevance(
    R: Any, # What an explainer returned
    f_p: Any, # Processed features that it explained
    explainer: Any, # The explainer, for the message of an error
) -> Tensor:
    "Return `R`. Raises `ValueError` unless it is a tensor in the shape of the features, since others would broadcast silently"
    if isinstance(explainer, LRP): return R
    wanted, found = tuple(features_of(f_p).shape), tuple(R.shape) if isinstance(R, Tensor) else type(R).__name__
    if found != wanted:
        raise ValueError(f'{explainer!r} returned relevance of shape {found}, the processed features have {wanted}: an explainer '
                         'gives a number for each of them')
    return R


def device_of(
    model: nn.Module, # The model, whose device counts if `f_p` has none
    f_p: Any, # Processed features
) -> torch.device:
    "The device of the classifier, found without materialising features"
    parts = [f_p] if isinstance(f_p, Tensor) else list(vars(f_p).values())
    return next(t.device for t in (*parts, *model.parameters()) if isinstance(t, Tensor))


def scores_and_trace(
    model: Any, # Has `classify`, and perhaps `classify_with_trace`
    f_p: Any, # Processed features
) -> tuple[Tensor, Any]:
    "Scores, and the trace of the pass or None, in the precision of the model"
    f_p = _as_parameters(model, f_p)
    if hasattr(model, 'classify_with_trace'): return model.classify_with_trace(f_p)
    return model.classify(f_p), None


def _as_parameters(model: nn.Module, f_p: Any) -> Any:
    "Processed features that autocast made, in the precision of the parameters"
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    cast = lambda t: t.to(dtype) if isinstance(t, Tensor) and t.dtype in (torch.half, torch.bfloat16) else t
    if isinstance(f_p, Tensor): return cast(f_p)
    if not isinstance(f_p, Processed): return f_p
    return replace(f_p, **{k: cast(v) for k, v in vars(f_p).items()})  # type: ignore[type-var]


def explained_scores(
    model: Any, # Has `classify`
    f_p: Any, # Processed features
) -> Callable[[Tensor], Tensor]:
    "The scores that an explanation starts from, as a function of the features: `model.explained_scores`, or `classify`"
    scores = getattr(model, 'explained_scores', model.classify)
    return lambda x: scores(with_features(f_p, x))
