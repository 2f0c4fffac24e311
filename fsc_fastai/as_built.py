"""Is a model still as it was built? A fast path that replaces the computation of its parts asks this first.

A class that has a fast path stores its `blueprint` at the end of `__init__`. If a part is replaced, a setting changed, or a hook
or method set on an object later, the blueprint no longer matches, and the parts themselves run.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ['as_built', 'blueprint']

_NO_SETTINGS = 'training', 'blueprint'


def as_built(
    model: Any, # A module, or an object with modules as attributes
    cls: type, # The class that the fast path was written for
    *steps: str, # Methods that the fast path replaces: neither a subclass nor the object may override them
    **parts: type, # Attributes that it replaces, with the class of each: they must be as they were built
) -> bool:
    "May a fast path replace these steps and parts of `model`, or without any the whole model?"
    if not steps and not parts: return type(model) is cls and vars(model).get('blueprint') == blueprint(model)  # type: ignore[arg-type]
    own = all(getattr(type(model), step) is getattr(cls, step) and step not in vars(model) for step in steps)
    return own and all(as_built(getattr(model, name), of) for name, of in parts.items())


def blueprint(module: nn.Module) -> tuple:
    "Everything except the weights that decides what a module computes: classes, settings, parameters and hooks of its parts"
    return tuple((name, type(m), tuple(k for k, p in m._parameters.items() if p is not None),
                  bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks),
                  tuple((k, v) for k, v in vars(m).items() if k[0] != '_' and k not in _NO_SETTINGS and _is_setting(v)))
                 for name, m in module.named_modules())


def _is_setting(value: Any) -> bool:
    # a method that computes the same in another way says so
    if isinstance(value, Callable): return not getattr(value, 'as_built', False)  # type: ignore[arg-type]
    return value is None or isinstance(value, (int, float, str, tuple))
