"A method with its support set: `head = model.head(f_support, support_y)`, then `head(f_query)` gives scores"
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
PAIRS = 1024 # Pairs that are classified at once, which limits the memory


def free_norms(model: nn.Module) -> dict[str, Any]:
    "The batch norms of a model without running statistics, by name; as published they use those of the batch"
    return {name: m for name, m in model.named_modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and not m.track_running_stats}


@contextmanager
def _statistics_of(norms: dict[str, Any]) -> Iterator[None]:
    "Fix the statistics of `norms` to those of the features that pass through them inside the block"
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
    "At most `limit` of the positions 0…n − 1, evenly spaced"
    return torch.arange(n) if n <= limit else torch.linspace(0, n - 1, limit).round().long()


class Head(nn.Module):
    """A method with its support set: feature maps `(n_query, C, H, W)` to scores `(n_query, n_way)`.

    With `statistics='batch'` the scores are the published ones. With 'support', `fit` classifies the support samples once as if
    they were queries and fixes the statistics of batch norms to those of this pass; each query is then scored independently of
    the others. Feature maps may also be given as `compact` returns them. This head serves every method; subclasses that
    `head_for` registers serve one method in a faster way.
    """
    model: Any # A `FewShotModel` with what its method adds
    support: Tensor
    member: Tensor
    steps: tuple[str, ...] = 'process', 'forward_head' # Methods of the model that must not have been overridden
    together = True # Many episodes are scored faster together than one by one, on a CPU too

    def __init__(self,
        model: nn.Module, # A `FewShotModel`; fixed statistics are set in a copy in eval mode
        statistics: Statistics = 'batch', # Those of the 'batch' of queries, or those of the 'support', fixed by `fit`
    ):
        super().__init__()
        if statistics not in get_args(Statistics):
            raise ValueError(f'statistics={statistics!r}: choose from {get_args(Statistics)}')
        self.fixed = statistics == 'support'
        self.model = copy.deepcopy(model).eval().requires_grad_(False) if self.fixed else model
        for name in ('support', 'member'): self.register_buffer(name, torch.empty(0), persistent=False)

    @classmethod
    def serves(cls,
        model: nn.Module, # A `FewShotModel`
        method: type, # The class for which the head is registered
        statistics: Statistics, # The statistics that are asked for
    ) -> bool:
        "Can this head replace the model's own steps? Not if they or parts of the model have been changed"
        return as_built(model, method, *cls.steps)

    def problem(self,
        n_way: int, # Number of classes
    ) -> str | None:
        "The reason why the method cannot tell so many classes apart, or None"
        known = self.model.n_way
        if not self.model.any_way and n_way != known:
            return (f'this {type(self.model).__name__} tells {known} classes apart, found {n_way}: its label width is fixed by '
                    f'training. Train with n_way={n_way}, or use a method without this limit (RelationNet, ProtoNet)')
        return f'two classes at least are needed, found {n_way} class{"es" * (n_way != 1)}' if n_way < 2 else None

    def compact(self,
        f: Tensor, # Feature maps `(n, C, H, W)`
    ) -> Tensor:
        "Feature maps in the form that saves the head most work: for images that are kept, or that are in many episodes"
        return f

    def fit(self,
        f_support: Tensor, # Feature maps `(n_support, C, H, W)`, or what `compact` made of them
        support_y: Tensor, # Labels `(n_support,)`, or one-hot `(n_support, n_way)`
    ) -> Head:
        "Take this support set. Returns the head itself"
        self.support, self.member = f_support, support_y
        if self.fixed: self._fix(f_support, one_hot(support_y, f_support.dtype))
        return self

    @torch.no_grad()
    def _fix(self, f_support: Tensor, member: Tensor) -> None:
        self.support, self.member = self.condensed(f_support, member)
        if norms := free_norms(self.model):
            with _statistics_of(norms): self.rehearse(f_support, member)

    def forward(self, f_query: Tensor) -> Tensor:
        "Scores `(n_query, n_way)` of any number of queries, a chunk at a time where statistics are fixed"
        return torch.cat([self.scores(f) for f in f_query.split(self.chunk())]) if self.fixed else self.scores(f_query)

    def scores(self,
        f_query: Tensor, # Feature maps `(n_query, C, H, W)`, or what `compact` made of them
    ) -> Tensor:
        "Scores `(n_query, n_way)` of the queries, in one pass"
        return self.model.forward_head(self.support, self.member, f_query)

    def spare(self) -> Head:
        "A copy for other support sets; it shares the encoder alone"
        return copy.deepcopy(self, {id(self.model.encoder): self.model.encoder})

    def without_each(self,
        f_support: Tensor, # Feature maps `(n_support, C, H, W)`, or what `compact` made of them
        member: Tensor, # One-hot labels `(n_support, n_way)`
        f_query: Tensor, # Feature maps `(n_query, C, H, W)`, or what `compact` made of them
        which: Tensor | None = None, # Positions `(n,)` of the samples to leave out; None: all
    ) -> Tensor:
        """Scores `(n, n_query, n_way)` after leaving out each support sample in turn; nan for the only sample of a class.

        The head itself does not change. It takes one fit per sample, unless a subclass can do better.
        """
        head, alone = self.spare(), member[:, member.sum(0) == 1].sum(1) > 0
        found = f_query.new_full((len(f_support), len(f_query), member.shape[1]), float('nan'))
        which = torch.arange(len(f_support)) if which is None else which
        for i in which.tolist():
            others = torch.arange(len(f_support), device=f_support.device) != i
            if not alone[i]: found[i] = head.fit(f_support[others], member[others])(f_query)
        return found[which.to(found.device)]

    def explained(self) -> Any:
        "The model for explanations of pixels, whose `encode` also accepts the support features that the head keeps"
        model: Any = copy.copy(self.model)
        model.encode = lambda x: x if x.shape[1:] == self.support.shape[1:] else self.model.encode(x)
        return model

    # Only with fixed statistics

    def condensed(self, f_support: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        "The support features to keep, and their one-hot labels"
        return self.compact(f_support), member

    def rehearse(self, f_support: Tensor, member: Tensor) -> None:
        "Classify support samples as if they were queries"
        self.scores(f_support[spread(len(f_support), PAIRS)])

    def chunk(self) -> int:
        "Number of queries to score at once"
        return max(1, PAIRS // len(self.member)) if self.model.queries_apart else 1


T = TypeVar('T', bound='type[Head]')
_heads: dict[type, list[type[Head]]] = {}


def head_for(
    *methods: type, # Classes of methods that the head serves
) -> Callable[[T], T]:
    "Register a subclass of `Head` for methods; `create_head` asks it whether it `serves`, the latest first"
    def register(cls: T) -> T:
        for method in methods: _heads.setdefault(method, []).insert(0, cls)
        return cls
    return register


def create_head(
    model: nn.Module, # A `FewShotModel`
    statistics: Statistics = 'batch', # Those of the 'batch' of queries, or those of the 'support', fixed by `fit`
) -> Head:
    "A head of the first registered class that serves the model, else a plain `Head`"
    for method in type(model).__mro__:
        for cls in _heads.get(method, ()):
            if cls.serves(model, method, statistics): return cls(model, statistics)
    return Head(model, statistics)
