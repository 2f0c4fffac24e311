"""In-place operations are replaced by ones that return a new value, which later uses of the tensor then get.

So nothing of the model changes, and layers keep the inputs that they had. As in PyTorch, what is written to a tensor also changes
its base and its views.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ['Memory', 'RESHAPES', 'carries', 'is_in_place', 'out_of_place']

_OUT_OF_PLACE = {'__iadd__': '__add__', '__isub__': '__sub__', '__imul__': '__mul__', '__itruediv__': '__truediv__',
                 '__idiv__': '__truediv__', '__imatmul__': '__matmul__'}


# What gives a tensor another shape and leaves its values
RESHAPES = {'squeeze', 'unsqueeze', 'transpose', 't', 'swapaxes', 'swapdims', 'resize', 'resize_as', 'as_strided', 'detach'}


def carries(t: object) -> bool:
    "Does relevance flow to `t`?"
    return isinstance(t, Tensor) and getattr(t, '_carries_relevance', False)


def is_in_place(
    name: str, # Name of the operation
    kwargs: dict, # Its keyword arguments
) -> bool:
    "Does an operation write to its first operand?"
    if name in _OUT_OF_PLACE or name == '__setitem__' or kwargs.get('inplace'): return True
    return name.endswith('_') and not name.startswith('_') and name != 'requires_grad_'


def out_of_place(func: Callable) -> Any:
    "The operation that returns what `func` writes, or None"
    return getattr(Tensor, _OUT_OF_PLACE.get(func.__name__, func.__name__.rstrip('_')), None)


class Memory:
    "The values of tensors that a network has overwritten"
    def __init__(self):
        # each with the tensor that it is about, which keeps the key from meaning another one
        self._written: dict[int, tuple[Tensor, Tensor]] = {} # by storage: the tensor that has all of it, and what that is now
        self._reshaped: dict[int, tuple[Tensor, Tensor]] = {} # by tensor: what `unsqueeze_` and its like made of it

    def latest(self, t: Tensor) -> Tensor:
        "The current value of `t`"
        while self._written or self._reshaped:
            if id(t) in self._reshaped: t = self._reshaped[id(t)][1]
            elif (written := self._written.get(_storage(t))) is not None:
                base, now = written
                t = now if _geometry(t) == _geometry(base) else _marked(_part(now, t, base))
            else: break
        return t

    def reshape(self,
        t: Tensor, # The tensor before
        view: Tensor, # Replaces it, but not its views
    ) -> Tensor:
        "`view`"
        self._reshaped[id(t)] = (t, view)
        return view

    def overwrite(self,
        t: Tensor, # The tensor that is written to, with all that shares its memory
        value: Tensor, # The new value, in its shape
    ) -> Tensor:
        "Remember the new value of `t`"
        t = self.latest(t)
        base = t if t._base is None else t._base
        if _storage(value) == _storage(base): value = _marked(value.clone())
        if _geometry(t) != _geometry(base) or value.stride() != base.stride():
            whole = (base if carries(base) else base.detach()).to(value.dtype, copy=True)
            _part(whole, t, base).copy_(value)
            value = _marked(whole)
        self._written[_storage(base)] = (base, value)
        return self.latest(t)


def _storage(t: Tensor) -> int: return t.untyped_storage()._cdata


def _geometry(t: Tensor) -> tuple: return t.shape, t.stride(), t.storage_offset()


def _part(whole: Tensor, t: Tensor, base: Tensor) -> Tensor:
    "The part of `whole` that `t` is of `base`"
    return whole.as_strided(t.shape, t.stride(), t.storage_offset() - base.storage_offset() + whole.storage_offset())


def _marked(t: Tensor) -> Tensor:
    t._carries_relevance = t.requires_grad  # type: ignore[attr-defined]
    return t
