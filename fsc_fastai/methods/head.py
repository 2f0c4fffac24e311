"A method beside its support: `head = model.head(f_support, support_y)`, then `head(f_query)` gives scores"
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from ..as_built import as_built
from .labels import one_hot

__all__ = ['Head', 'Statistics', 'head_for', 'create_head', 'free_norms', 'spread']

Statistics = Literal['batch', 'support']
PAIRS = 1024 # Pairs that are classified at once: what bounds the memory


def free_norms(model: nn.Module) -> dict[str, Any]:
    "The batch norms of a model that keep no running statistics, by name: as published they use those of the batch"
    return {name: m for name, m in model.named_modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and not m.track_running_stats}


@contextmanager
def _statistics_of(norms: dict[str, Any]) -> Iterator[None]:
    "Fixes the statistics of `norms` to those of what passes through them here, where they use these already"
    def remember(norm, args):
        own = getattr(norm, 'statistics', None)
        seen[norm] = own(*args) if own else torch.var_mean(args[0].transpose(0, 1).flatten(1), 1, correction=0)[::-1]
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    for norm in norms.values(): norm.running_mean = norm.running_var = None
    hooks = [norm.register_forward_pre_hook(remember) for norm in norms.values()]
    try: yield
    finally:
        for hook in hooks: hook.remove()
    for norm, (mean, var) in seen.items(): norm.running_mean, norm.running_var = mean, var


def spread(n: int, limit: int) -> Tensor:
    "At most `limit` of n positions, evenly spaced"
    return torch.arange(n) if n <= limit else torch.linspace(0, n - 1, limit).round().long()


class Head(nn.Module):
    """A method with its support set: feature maps `(n_query, C, H, W)` to scores `(n_query, n_way)`.

    With `statistics='batch'` these are the published scores. With 'support', `fit` fixes the statistics of batch norms that
    would otherwise be those of the queries at hand, by a rehearsal in which support samples stand for queries; each query is
    then scored by itself. Feature maps may come as `compact` made of them. This head serves every method; a subclass under
    `head_for` serves one method in a way of its own.
    """
    model: Any # A `FewShotModel` with what its method adds
    support: Tensor
    member: Tensor
    steps: tuple[str, ...] = 'process', 'forward_head' # Steps of the method that it counts on: no other than the method's own
    together = True # Are many episodes faster scored together than one by one, on a CPU too?

    def __init__(self,
        model: nn.Module, # A `FewShotModel`; fixed statistics are set in a copy, in eval mode
        statistics: Statistics = 'batch', # Of the queries at hand, or fixed by the support
    ):
        super().__init__()
        if statistics not in get_args(Statistics):
            raise ValueError(f'statistics={statistics!r}: choose from {get_args(Statistics)}')
        self.fixed = statistics == 'support'
        self.model = copy.deepcopy(model).eval().requires_grad_(False) if self.fixed else model
        for name in ('support', 'member'): self.register_buffer(name, torch.empty(0), persistent=False)

    @classmethod
    def serves(cls,
        model: nn.Module, # With all its parts
        method: type, # For which the head is registered
        statistics: Statistics, # As asked for
    ) -> bool:
        "Does it stand for this model, whose steps and parts may have been changed?"
        return as_built(model, method, *cls.steps)

    def problem(self,
        n_way: int, # Classes to tell apart
    ) -> str | None:
        "Why so many classes cannot be told apart, or None"
        known = self.model.n_way
        if not self.model.any_way and n_way != known:
            return (f'this {type(self.model).__name__} tells {known} classes apart, found {n_way}: its label width is fixed by '
                    f'training. Train with n_way={n_way}, or use a method without this limit (RelationNet, ProtoNet)')
        return f'two classes at least are needed, found {n_way} class{"es" * (n_way != 1)}' if n_way < 2 else None

    def compact(self,
        f: Tensor, # Feature maps `(n, C, H, W)`
    ) -> Tensor:
        "The form of feature maps from which the head starts soonest: for images that are kept, or meet in many episodes"
        return f

    def fit(self,
        f_support: Tensor, # Feature maps `(n_support, C, H, W)`, or what `compact` made of them
        support_y: Tensor, # Labels `(n_support,)`, or one-hot `(n_support, n_way)`
    ) -> Head:
        "Take this support set; returns the head itself"
        self.support, self.member = f_support, support_y
        if self.fixed: self._fix(f_support, one_hot(support_y, f_support.dtype))
        return self

    @torch.no_grad()
    def _fix(self, f_support: Tensor, member: Tensor) -> None:
        self.support, self.member = self.condensed(f_support, member)
        if norms := free_norms(self.model):
            with _statistics_of(norms): self.rehearse(f_support, member)

    def forward(self, f_query: Tensor) -> Tensor:
        "Scores `(n_query, n_way)` of any number of queries"
        return torch.cat([self.scores(f) for f in f_query.split(self.chunk())]) if self.fixed else self.scores(f_query)

    def scores(self,
        f_query: Tensor, # Feature maps `(n_query, C, H, W)`, or what `compact` made of them
    ) -> Tensor:
        "Scores `(n_query, n_way)` of queries in one pass"
        return self.model.forward_head(self.support, self.member, f_query)

    def spare(self) -> Head:
        "A copy to be fitted to other support sets, which only shares the encoder"
        return copy.deepcopy(self, {id(self.model.encoder): self.model.encoder})

    def without_each(self,
        f_support: Tensor, # Feature maps `(n_support, C, H, W)`, or what `compact` made of them
        member: Tensor, # One-hot labels `(n_support, n_way)`
        f_query: Tensor, # Feature maps `(n_query, C, H, W)`, or what `compact` made of them
        which: Tensor | None = None, # Positions `(n,)` in the support; None: all
    ) -> Tensor:
        """Scores `(n, n_query, n_way)` beside a support set that lacks one sample, for each; nan where it is alone in its class.

        The head itself stays as it is. As many fits as samples, unless a method can do better.
        """
        head, alone = self.spare(), member[:, member.sum(0) == 1].sum(1) > 0
        found = f_query.new_full((len(f_support), len(f_query), member.shape[1]), float('nan'))
        which = torch.arange(len(f_support)) if which is None else which
        for i in which.tolist():
            others = torch.arange(len(f_support), device=f_support.device) != i
            if not alone[i]: found[i] = head.fit(f_support[others], member[others])(f_query)
        return found[which.to(found.device)]

    def explained(self) -> Any:
        "The model as explanations of pixels take it: in the place of images of the support it encodes what the head keeps"
        model: Any = copy.copy(self.model)
        model.encode = lambda x: x if x.shape[1:] == self.support.shape[1:] else self.model.encode(x)
        return model

    # Where statistics are fixed

    def condensed(self, f_support: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        "What is kept of the support set, and its labels"
        return self.compact(f_support), member

    def rehearse(self, f_support: Tensor, member: Tensor) -> None:
        "Classify support samples as if they were queries"
        self.scores(f_support[spread(len(f_support), PAIRS)])

    def chunk(self) -> int:
        "Queries to score at once"
        return max(1, PAIRS // len(self.member)) if self.model.queries_apart else 1


T = TypeVar('T', bound='type[Head]')
_heads: dict[type, list[type[Head]]] = {}


def head_for(
    *methods: type, # Methods that it serves
) -> Callable[[T], T]:
    "Decorator: a class of heads that is asked whether it `serves` models of these methods, before those registered earlier"
    def register(cls: T) -> T:
        for method in methods: _heads.setdefault(method, []).insert(0, cls)
        return cls
    return register


def create_head(
    model: nn.Module, # A `FewShotModel`
    statistics: Statistics = 'batch', # Of the queries at hand, or fixed by the support
) -> Head:
    "The head for a model, of the first class that serves it, or one that serves every method"
    for method in type(model).__mro__:
        for cls in _heads.get(method, ()):
            if cls.serves(model, method, statistics): return cls(model, statistics)
    return Head(model, statistics)
