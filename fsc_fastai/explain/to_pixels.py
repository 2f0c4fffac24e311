"From the scores to the pixels of query and support images, for every query and class"
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..briefly import brief_repr
from ..methods.finite import finite_scores
from ..tensors import plain
from .engine import Traced, undisturbed
from .explainer import Explainer
from .lrp import LRP, checked_relevance, features_of

__all__ = ['ImageRelevance', 'explain_images', 'attention_maps', 'attention_of', 'encoded', 'through_encoder']


class ImageRelevance(NamedTuple):
    "Relevance of an episode's images for every query and class, on the device of the images; detached"
    query: Tensor # `(n_query, n_way, channels, height, width)`
    support: Tensor | None # `(n_query, n_way, n_support, channels, height, width)`, or None if not wanted
    scores: Tensor # `(n_query, n_way)`
    def __repr__(self) -> str: return brief_repr(self)


def explain_images(
    model: Any, # A few-shot model: `encode`, `process`, `classify`
    support_x: Tensor, # Images `(n_support, 3, height, width)`
    support_y: Tensor, # Their labels `(n_support,)`
    query_x: Tensor, # Images `(n_query, 3, height, width)`
    explainer: Any = None, # `LRP.published()`, `IntegratedGradients()`, …, or a callable `(model, f_p)`; None: `LRP.faithful()`
    support: bool = True, # Explain the support images too, with n_query·n_way maps for each
    sum_channels: bool = False, # Sum over the channels, which saves memory: `channels` is then 1
    chunk: int = 64, # Maps that pass back through the encoder at once
    against: int | None = None, # A class whose score is subtracted from those of all others before they are explained
    classes: Tensor | None = None, # The classes to explain for each query `(n_query, k)`; None: all. Each costs a pass
) -> ImageRelevance:
    """Relevance of the pixels of query and support images, for every (query, class).

    `explainer` explains the classifier, and its rules (or `LRP()` for other callables) carry relevance from the feature maps
    through the encoder, a few images at a time. The model does not change. With `against`, relevance starts at a difference of
    two scores: evidence for both classes cancels, and the class itself has no relevance. This needs an `Explainer`.

    One class per query costs about three forward passes of the episode, all five classes less than one pass each (ResNet10 at
    84 px, by LRP, `benchmarks/explain.py`). The support costs one pass of its images for every query and class.
    Raises `ValueError` in training mode, where the batch norms of the encoder mix the images, for scores that are not finite, and
    for an `against` that is no class.
    """
    if model.training: raise ValueError('explain_images in training mode, where batch norm mixes the images: call model.eval()')
    explainer = LRP.faithful() if explainer is None else explainer
    rules = explainer if isinstance(explainer, Explainer) else LRP()
    images = plain(support_x).detach(), plain(query_x).detach()
    with undisturbed(query_x.device, model), torch.no_grad():
        f_p = model.process(encoded(model, images[0], chunk), support_y, encoded(model, images[1], chunk))
        scores = finite_scores(model.classify(f_p).detach(), 'these images')
        direct = rules.of_images(lambda x: encoded(model, x, chunk), lambda s, q: model.classify(model.process(s, support_y, q)),
                                 *images, support)
    if against is not None: _check_against(against, scores.shape[1], explainer, explainer is rules and direct is None)
    def summed(R: Tensor) -> Tensor: return R.sum(-3, keepdim=True) if sum_channels else R
    every = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
    wanted = every if classes is None else classes.to(scores.device)
    if direct is not None:
        each = torch.arange(len(scores), device=scores.device)[:, None]
        of_query, of_support = (None if R is None else summed(R[each, wanted]) for R in direct)
        return ImageRelevance(cast(Tensor, of_query), of_support, scores)
    parts = [_to_pixels(model, [f * x for x in images], support_y, explainer, rules, scores, wanted, support, chunk, against)
             for f in rules.fractions]
    def pixels(i: int) -> Tensor: return summed(rules.finish(images[i], torch.stack([part[i] for part in parts]).mean(0)))
    # support images have maps for every pair, query images for every class
    return ImageRelevance(pixels(1).transpose(0, 1), pixels(0).unflatten(0, wanted.shape) if support else None, scores)


def _check_against(against: int, n_way: int, explainer: Any, starts: bool) -> None:
    "`ValueError` for an explainer that cannot start at a difference of scores, and for a class that is none"
    if not starts:
        raise ValueError('against needs an Explainer that passes scores back, such as LRP() or GradientXInput(), and starts '
                         f'where it is told to: {explainer!r} is none')
    if not 0 <= against < n_way: raise ValueError(f'against={against}: the classes are 0 to {n_way - 1}')


def encoded(
    model: Any, # A few-shot model
    x: Tensor, # Images `(n, channels, height, width)`
    chunk: int, # Images at once
) -> Tensor:
    "Feature maps `(n, C, H, W)`"
    return torch.cat([model.encode(part) for part in x.split(chunk)])


def _to_pixels(
    model: Any, images: list[Tensor], support_y: Tensor, explainer: Any, rules: Any, scores: Tensor, classes: Tensor,
    support: bool, chunk: int, against: int | None,
) -> list[Tensor]:
    "What arrives at support images `(n_query·n_classes, n_support, ...)` and at query images `(n_classes, n_query, ...)`"
    with undisturbed(scores.device, model), torch.no_grad(): f_support, f_query = (encoded(model, x, chunk) for x in images)
    if against is None: run, start = _classifier(model, f_support, support_y, f_query, explainer, rules, scores)
    else: run, start = _difference(model, f_support, support_y, f_query, rules, against)
    to_support, to_query = [], []
    for q in range(scores.shape[0]):
        R_support, R_query = run.relevance(start(q)[classes[q]], keep=True)
        to_query.append(R_query[:, q])
        if support: to_support.append(R_support)
    query = through_encoder(model, images[1], torch.stack(to_query, 1), rules, chunk)
    return [through_encoder(model, images[0], torch.cat(to_support), rules, chunk) if support else query[:0], query]


def _classifier(
    model: Any, f_support: Tensor, support_y: Tensor, f_query: Tensor, explainer: Any, rules: Any, scores: Tensor,
) -> tuple[Traced, Callable[[int], Tensor]]:
    "A run from feature maps, and its starts for the classes of query q"
    f_p = model.process(f_support, support_y, f_query)
    of_class = getattr(f_p, 'of_class', None)
    if explainer is rules and not (rules.own_score and of_class is not None):
        R = rules.starts(scores)
        run = rules.trace(lambda s, q: model.classify(model.process(s, support_y, q)), f_support, f_query, model=model)
        return run, lambda q: _only(R[q], q, len(R))
    # pairs hold all that the classifier sees of support and query, so that its own pass, which is faster, can explain them
    R = checked_relevance(explainer(model, f_p), f_p, explainer)
    if of_class is None: of_class = torch.eye(scores.shape[1], device=R.device)
    if R.shape[:2] != (len(scores), of_class.shape[1]):
        raise ValueError(f'{explainer!r} explains the features of {type(f_p).__name__} for all classes at once, not for each: '
                         'use LRP(), GradientXInput() or IntegratedGradients() for images')
    run = rules.trace(lambda s, q: features_of(model.process(s, support_y, q)), f_support, f_query, model=model)
    classes = of_class.reshape(*of_class.shape, *[1] * (R.ndim - 2)).to(R.dtype)
    return run, lambda q: _only(classes * R[q], q, len(R))


def _difference(
    model: Any, f_support: Tensor, support_y: Tensor, f_query: Tensor, rules: Any, against: int,
) -> tuple[Traced, Callable[[int], Tensor]]:
    "A run from feature maps, and its starts for query q: for each class its evidence, less that of the other at the other"
    run = rules.trace(lambda s, q: model.evidence(model.process(s, support_y, q)), f_support, f_query, model=model)
    evidence = rules.start_of_output(run.out)
    R = torch.diag_embed(evidence)
    R[..., against] -= evidence[:, against, None]
    return run, lambda q: _only(R[q], q, len(R))


def _only(R: Tensor, q: int, n_query: int) -> Tensor:
    "`R` of query q `(n_way, ...)`, and zeros for the other queries `(n_way, n_query, ...)`"
    full = R.new_zeros(len(R), n_query, *R.shape[1:])
    full[:, q] = R
    return full


def through_encoder(
    model: Any, # A few-shot model
    x: Tensor, # Images `(n_images, channels, height, width)`
    flow: Tensor, # The flow at their feature maps `(n_starts, n_images, C, H, W)`
    rules: Explainer, # The explainer that carries it on
    chunk: int, # Maps that pass back at once
) -> Tensor:
    "The flow at the images `(n_starts, n_images, channels, height, width)`"
    of_images = []
    n_images = max(1, chunk // flow.shape[0])
    for part, R in zip(x.split(n_images), flow.split(n_images, 1), strict=True):
        run = rules.trace(model.encode, part, model=model, deep=True)
        of_images.append(torch.cat([run.relevance(r, keep=True)[0] for r in R.split(max(1, chunk // len(part)))]))
    return torch.cat(of_images, 1)


@torch.no_grad()
def attention_of(model: Any, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor] | None:
    "The same as `attention_maps`, but None for a method without attention"
    with undisturbed(query_x.device, model):
        return model.attention_maps(model.encode(plain(support_x)), support_y, model.encode(plain(query_x)))


def attention_maps(
    model: Any, # A few-shot model with attention, such as a `CrossAttentionNet`
    support_x: Tensor, # Images `(n_support, 3, height, width)`
    support_y: Tensor, # Their labels `(n_support,)`
    query_x: Tensor, # Images `(n_query, 3, height, width)`
) -> tuple[Tensor, Tensor]:
    "Attention maps of queries and classes, both `(n_query, n_way, H, W)`. Raises `TypeError` for a method without attention"
    found = attention_of(model, support_x, support_y, query_x)
    if found is None: raise TypeError(f'attention maps need a CrossAttentionNet, found {type(model).__name__}')
    return found
