"Adaptation on features: each image is encoded once, and a classifier is fitted to the support of an episode"
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..methods.base import FewShotModel
from .base import Adaptation
from .feature_net import FeatureNet

__all__ = ['FeatureMethod', 'Fitted', 'Nearest', 'Linear', 'Answers', 'Treatment', 'Similarity', 'means', 'unit', 'cosines',
           'squared_distances', 'distances', 'softmax', 'log_softmax', 'nearest_one_hot', 'cross_entropy']

Treatment = Literal['un', 'l2', 'c', 'cl2']
Similarity = Callable[[Tensor, Tensor], Tensor]
IN_CACHE = 2**22 # Bytes


# Everything here takes leading dimensions: many episodes of one size are adapted together

def unit(x: Tensor) -> Tensor:
    "Vectors at length 1; 0 stays 0"
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def means(
    x: Tensor, # Features `(…, n, d)`
    member: Tensor, # One-hot or soft membership `(…, n, n_way)`
) -> Tensor:
    "The mean of each class `(…, n_way, d)`, weighted by membership"
    return member.mT @ x / member.sum(-2)[..., None]


# Scores lie in memory class by class: sums over few classes are then slow no more, so that even softmax is worth writing out

def cosines(x: Tensor, prototypes: Tensor) -> Tensor:
    "Cosines `(…, n, n_way)` of features `(…, n, d)` and prototypes `(…, n_way, d)`"
    of_x, of_prototypes = (t.norm(dim=-1).clamp(min=1e-12) for t in (x, prototypes))
    return (prototypes @ x.mT).mT / of_x[..., None] / of_prototypes[..., None, :]


def squared_distances(x: Tensor, prototypes: Tensor) -> Tensor:
    "Squared Euclidean distances `(…, n, n_way)`, seen from the mean of the prototypes: nearer to 0 fewer digits are lost"
    centre = prototypes.mean(-2, keepdim=True)
    x, prototypes = x - centre, prototypes - centre
    of_x, of_prototypes = (t.norm(dim=-1).square() for t in (x, prototypes))
    return (of_x[..., None] + of_prototypes[..., None, :] - 2 * (prototypes @ x.mT).mT).clamp(min=0)


def distances(x: Tensor, prototypes: Tensor) -> Tensor:
    "Euclidean distances `(…, n, n_way)`, by differences: exact where they are 0, and there with a gradient of 0"
    squared = torch.stack([(x - p[..., None, :]).square().sum(-1) for p in prototypes.unbind(-2)], -1)
    return torch.where(squared > 0, squared, 1.).sqrt().where(squared > 0, 0.)


def softmax(logits: Tensor) -> Tensor:
    "Over the classes, `(…, n, n_way)`"
    p = (logits - logits.amax(-1, keepdim=True)).exp()
    return p / p.sum(-1, keepdim=True)


def log_softmax(logits: Tensor) -> Tensor:
    "Logarithms of `softmax`"
    z = logits - logits.amax(-1, keepdim=True)
    return z - z.exp().sum(-1, keepdim=True).log()


def nearest_one_hot(similarity: Tensor) -> Tensor:
    "Pseudo-labels: one-hot rows `(…, n, n_way)` for the most similar class"
    return torch.zeros_like(similarity).scatter_(-1, similarity.argmax(-1, keepdim=True), 1.)


def cross_entropy(
    logits: Tensor, # `(…, n, n_way)`
    member: Tensor, # One-hot labels `(…, n, n_way)`
) -> Tensor:
    "Mean cross entropy of each episode `(…)`"
    return -(member * log_softmax(logits)).sum(-1).mean(-1)


@dataclass(kw_only=True)
class Fitted:
    "What a method makes of a support: a classifier of features `(…, n, d)` with scores `(…, n, n_way)`, higher is likelier"
    treat: Callable[[Tensor], Tensor] = field(default_factory=lambda: lambda x: x, repr=False) # Comes before everything else
    details: dict[str, Tensor] = field(default_factory=dict, repr=False) # Of the fitting, such as its losses

    def score(self, x: Tensor) -> Tensor:
        "Scores of treated features"
        raise NotImplementedError

    def __call__(self, query: Tensor) -> Tensor:
        "Scores `(…, n, n_way)` of features `(…, n, d)`"
        return self.score(self.treat(query))


@dataclass(kw_only=True)
class Nearest(Fitted):
    "The class of the most similar prototype"
    prototypes: Tensor # `(…, n_way, d)`
    similarity: Similarity = cosines # Of features and prototypes
    transform: Tensor | None = None # Features become W·x with this `(…, d, d)`

    def score(self, x: Tensor) -> Tensor:
        "Similarities to the prototypes"
        return self.similarity(x if self.transform is None else x @ self.transform.mT, self.prototypes)


@dataclass(kw_only=True)
class Linear(Fitted):
    "A linear classifier"
    weight: Tensor # `(…, d, n_way)`
    bias: Tensor # `(…, 1, n_way)`

    def score(self, x: Tensor) -> Tensor:
        "x·W + b"
        return x @ self.weight + self.bias


@dataclass(kw_only=True)
class Answers(Fitted):
    "A transductive answer: scores of the very queries that took part in the fitting, and of no others"
    scores: Tensor # `(…, n_query, n_way)`

    def score(self, x: Tensor) -> Tensor:
        "The scores; `ValueError` for another number of queries"
        if x.shape[-2] != self.scores.shape[-2]:
            raise ValueError(f'a transductive method answered {self.scores.shape[-2]} queries, found {x.shape[-2]}: '
                             'fit it to these')
        return self.scores


@dataclass(kw_only=True)
class FeatureMethod(Adaptation):
    """A classifier on features: a subclass is a dataclass of its settings with `adapt`, which reads like its paper's section.

        fitted = BDCSPN().fit(support, support_y, query)    # `query` is looked at by transductive methods only
        scores = fitted(query)                              # (n_query, n_way)

    Support `(…, n_support, d)` and queries `(…, n_query, d)` in any order; shots may differ from class to class. No method sees a
    query's label. Leading dimensions are episodes of one size, each for itself.
    """
    on_images = False
    linear = False # Is what it fits a `Linear`?
    has_graph = False # Can an exporter of graphs write it down? Not what learns by steps, or solves equations
    treatment: Treatment = 'un' # Features as they are ('un'), at unit length ('l2'), minus `centre` ('c'), or both ('cl2')
    centre: Tensor | None = None # Mean feature of the base classes `(d,)`; None: the mean of the support

    def __call__(self,
        model: FewShotModel, support_x: Tensor | None = None, support_y: Tensor | None = None, query_x: Tensor | None = None,
    ) -> FeatureNet:
        "The model's encoder with this method behind it, fitted to each support anew: the images may be left out"
        return FeatureNet.around(model, self)

    def adapt(self, support: Tensor, member: Tensor, query: Tensor | None) -> Fitted:
        "Fit to treated features, labels one-hot; `query` is None for an inductive method"
        raise NotImplementedError(f'{type(self).__name__} needs `adapt(support, member, query)`')

    def fit(self,
        support: Tensor, # Features of the support `(…, n_support, d)`
        support_y: Tensor, # Labels `(n_support,)`, or one-hot `(…, n_support, n_way)`
        query: Tensor | None = None, # Unlabelled features `(…, n_query, d)`, for transductive methods
    ) -> Any:
        """Fit a classifier to the support.

        Raises `ValueError` for a transductive method without queries, a support of one class, or too few examples of a class.
        """
        name = type(self).__name__
        if self.treatment not in get_args(Treatment):
            raise ValueError(f'{name}(treatment={self.treatment!r}): one of {get_args(Treatment)}')
        if self.transductive and (query is None or query.shape[-2] == 0):
            raise ValueError(f'{name} is transductive, it answers the queries together: fit(support, support_y, query)')
        member = _one_hot(support_y, support)
        if member.shape[-1] < 2: raise ValueError(f'{name}: a support of one class leaves nothing to tell apart')
        shots = member.sum(-2)
        # an exporter of graphs knows no values
        if not torch.compiler.is_compiling() and (shots < self.least_shots).any():
            raise ValueError(f'{name} needs {self.least_shots} examples of each class, found {int(shots.min())} of one: '
                             'give more, or use a method that starts from class means, such as SimpleShot')
        treat = self.treating(support)
        fitted = self.adapt(treat(support), member, treat(query) if self.transductive and query is not None else None)
        return replace(fitted, treat=lambda x: fitted.treat(treat(x)))

    def numbers(self, n_support: int, n_query: int, n_way: int, d: int) -> int:
        "Roughly how many numbers are at work for an episode of d features"
        return (n_support + n_query) * d

    def answer(self,
        support: Tensor, # Features of the supports `(n_episodes, n_support, d)`
        support_y: Tensor, # Labels `(n_support,)` of each, or one-hot `(n_support, n_way)`
        query: Tensor, # Features of the queries `(n_episodes, n_query, d)`
    ) -> Tensor:
        "Scores `(n_episodes, n_query, n_way)`; a CPU takes as many episodes at once as its cache holds, for which it is fastest"
        member = _one_hot(support_y, support)
        numbers = self.numbers(support.shape[-2], query.shape[-2], member.shape[-1], support.shape[-1])
        at_once = max(1, IN_CACHE // (numbers * support.element_size())) if support.is_cpu else len(support)
        parts = zip(support.split(at_once), query.split(at_once), strict=True)
        return torch.cat([self.fit(s, member, q)(q) for s, q in parts])

    @property
    def treats_alone(self) -> bool:
        "Is a query treated in the same way beside any support?"
        return self.centre is not None or self.treatment in ('un', 'l2')

    def treating(self,
        support: Tensor, # Features `(…, n_support, d)`
    ) -> Callable[[Tensor], Tensor]:
        "What brings features to the form that `adapt` takes"
        centre = support.mean(-2, keepdim=True) if self.centre is None else self.centre.to(support)
        return {'un': lambda x: x, 'l2': unit, 'c': lambda x: x - centre, 'cl2': lambda x: unit(x - centre)}[self.treatment]


def _one_hot(support_y: Tensor, support: Tensor) -> Tensor:
    if support_y.ndim > 1: return support_y.to(support.dtype)
    return (support_y[:, None] == torch.arange(int(support_y.max()) + 1, device=support.device)).to(support.dtype)
