"Adaptations on features: each image is encoded once, and a classifier is fitted to the features of the support"
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..methods.base import FewShotModel, one_hot
from .base import Adaptation, check_shots
from .feature_net import FeatureNet

__all__ = ['FeatureMethod', 'Fitted', 'Nearest', 'Linear', 'Answers', 'Treatment', 'Similarity', 'means', 'unit', 'cosines',
           'squared_distances', 'distances', 'nearest_one_hot', 'cross_entropy']

Treatment = Literal['un', 'l2', 'c', 'cl2']
Similarity = Callable[[Tensor, Tensor], Tensor]
IN_CACHE = 2**22 # Bytes


# All functions take leading dimensions `…`: many episodes of one size are adapted together

def unit(x: Tensor) -> Tensor:
    "Vectors at unit length; 0 stays 0"
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def means(
    x: Tensor, # Features `(…, n, d)`
    member: Tensor, # One-hot or soft membership `(…, n, n_way)`
) -> Tensor:
    "The mean of each class `(…, n_way, d)`, weighted by membership"
    return member.mT @ x / member.sum(-2)[..., None]


# Scores are stored class by class, which makes sums over a few classes fast

def cosines(x: Tensor, prototypes: Tensor) -> Tensor:
    "Cosines `(…, n, n_way)` of features `(…, n, d)` and prototypes `(…, n_way, d)`"
    of_x, of_prototypes = (t.norm(dim=-1).clamp(min=1e-12) for t in (x, prototypes))
    return (prototypes @ x.mT).mT / of_x[..., None] / of_prototypes[..., None, :]


def squared_distances(x: Tensor, prototypes: Tensor) -> Tensor:
    "Squared Euclidean distances `(…, n, n_way)`, computed relative to the mean of the prototypes to lose fewer digits"
    centre = prototypes.mean(-2, keepdim=True)
    x, prototypes = x - centre, prototypes - centre
    of_x, of_prototypes = (t.norm(dim=-1).square() for t in (x, prototypes))
    return (of_x[..., None] + of_prototypes[..., None, :] - 2 * (prototypes @ x.mT).mT).clamp(min=0)


def distances(x: Tensor, prototypes: Tensor) -> Tensor:
    "Euclidean distances `(…, n, n_way)` from differences: exactly 0 for equal vectors, where the gradient is 0, too"
    squared = torch.stack([(x - p[..., None, :]).square().sum(-1) for p in prototypes.unbind(-2)], -1)
    return torch.where(squared > 0, squared, 1.).sqrt().where(squared > 0, 0.)


def nearest_one_hot(similarity: Tensor) -> Tensor:
    "Pseudo-labels `(…, n, n_way)`: the most similar class of each row, one-hot"
    return torch.zeros_like(similarity).scatter_(-1, similarity.argmax(-1, keepdim=True), 1.)


def cross_entropy(
    logits: Tensor, # `(…, n, n_way)`
    member: Tensor, # One-hot labels `(…, n, n_way)`
) -> Tensor:
    "Mean cross entropy of each episode `(…)`"
    return -(member * logits.log_softmax(-1)).sum(-1).mean(-1)


@dataclass(kw_only=True)
class Fitted:
    "A classifier fitted to a support: features `(…, n, d)` to scores `(…, n, n_way)`, higher is likelier"
    treat: Callable[[Tensor], Tensor] = field(default_factory=lambda: lambda x: x, repr=False) # Applied to features first
    details: dict[str, Tensor] = field(default_factory=dict, repr=False) # Results of fitting, such as the losses

    def score(self, x: Tensor) -> Tensor:
        "Scores `(…, n, n_way)` of features that have been through `treat`"
        raise NotImplementedError

    def __call__(self, query: Tensor) -> Tensor:
        "Scores `(…, n, n_way)` of features `(…, n, d)`"
        return self.score(self.treat(query))


@dataclass(kw_only=True)
class Nearest(Fitted):
    "Scores are similarities to prototypes"
    prototypes: Tensor # `(…, n_way, d)`
    similarity: Similarity = cosines # Similarity of features and prototypes
    transform: Tensor | None = None # Matrix W `(…, d, d)` that maps features x to W·x

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
    "The scores of a transductive method, which hold only for the queries that it was fitted with"
    scores: Tensor # `(…, n_query, n_way)`

    def score(self, x: Tensor) -> Tensor:
        "The stored scores. Raises `ValueError` for another number of queries"
        if x.shape[-2] != self.scores.shape[-2]:
            raise ValueError(f'a transductive method answered {self.scores.shape[-2]} queries, found {x.shape[-2]}: '
                             'fit it to these')
        return self.scores


@dataclass(kw_only=True)
class FeatureMethod(Adaptation):
    """An adaptation that fits a classifier to features. A subclass is a dataclass of its settings with a method `adapt`.

        fitted = BDCSPN().fit(support, support_y, query)    # only transductive methods use `query`
        scores = fitted(query)                              # (n_query, n_way)

    Support features are `(…, n_support, d)` and queries `(…, n_query, d)`, in any order; classes may have different shots.
    Leading dimensions are independent episodes of one size. No method sees the label of a query.
    """
    on_images = False
    linear = False # The fitted classifier is a `Linear`
    has_graph = False # ONNX can express it, which excludes methods that learn in steps or solve equations
    treatment: Treatment = 'un' # Features unchanged ('un'), at unit length ('l2'), minus `centre` ('c'), or both ('cl2')
    centre: Tensor | None = None # Mean feature of the base classes `(d,)`; None: the mean of the support

    def __call__(self,
        model: FewShotModel, support_x: Tensor | None = None, support_y: Tensor | None = None, query_x: Tensor | None = None,
    ) -> FeatureNet:
        "A model with the given encoder that fits this method to each support anew, so that the images may be left out"
        return FeatureNet.around(model, self)

    def adapt(self, support: Tensor, member: Tensor, query: Any) -> Fitted:
        "Fit to treated features and one-hot labels; `query` is None for an inductive method"
        raise NotImplementedError(f'{type(self).__name__} needs `adapt(support, member, query)`')

    def fit(self,
        support: Tensor, # Features of the support `(…, n_support, d)`
        support_y: Tensor, # Labels `(n_support,)`, or one-hot `(…, n_support, n_way)`
        query: Tensor | None = None, # Unlabelled features `(…, n_query, d)`, for transductive methods
    ) -> Any:
        """Fit a classifier to the support; returns a `Fitted`.

        Raises `ValueError` for a transductive method without queries, a support of one class, or too few examples of a class.
        """
        name = type(self).__name__
        if self.treatment not in get_args(Treatment):
            raise ValueError(f'{name}(treatment={self.treatment!r}): one of {get_args(Treatment)}')
        if self.transductive and (query is None or query.shape[-2] == 0):
            raise ValueError(f'{name} is transductive, it answers the queries together: fit(support, support_y, query)')
        member = one_hot(support_y, support.dtype)
        check_shots(self, member.sum(-2))
        treat = self.treating(support)
        fitted = self.adapt(treat(support), member, treat(query) if self.transductive and query is not None else None)
        return replace(fitted, treat=lambda x: fitted.treat(treat(x)))

    def numbers(self, n_support: int, n_query: int, n_way: int, d: int) -> int:
        "Roughly how many numbers one episode of d features keeps in memory"
        return (n_support + n_query) * d

    def answer(self,
        support: Tensor, # Features of the supports `(n_episodes, n_support, d)`
        support_y: Tensor, # Labels of every episode `(n_support,)`, or one-hot `(n_support, n_way)`
        query: Tensor, # Features of the queries `(n_episodes, n_query, d)`
    ) -> Tensor:
        "Scores `(n_episodes, n_query, n_way)`; a CPU adapts as many episodes at once as fit into its cache"
        member = one_hot(support_y, support.dtype)
        numbers = self.numbers(support.shape[-2], query.shape[-2], member.shape[-1], support.shape[-1])
        at_once = max(1, IN_CACHE // (numbers * support.element_size())) if support.is_cpu else len(support)
        parts = zip(support.split(at_once), query.split(at_once), strict=True)
        return torch.cat([self.fit(s, member, q)(q) for s, q in parts])

    @property
    def treats_alone(self) -> bool:
        "Is the treatment of a query independent of the support?"
        return self.centre is not None or self.treatment in ('un', 'l2')

    def treating(self,
        support: Tensor, # Features `(…, n_support, d)`
    ) -> Callable[[Tensor], Tensor]:
        "The function that treats features as `treatment` says"
        centre = support.mean(-2, keepdim=True) if self.centre is None else self.centre.to(support)
        return {'un': lambda x: x, 'l2': unit, 'c': lambda x: x - centre, 'cl2': lambda x: unit(x - centre)}[self.treatment]
