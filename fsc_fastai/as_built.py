"""Is a model still as it was built? What computes by other means what its parts would compute asks this first.

A class for which such a fast path stands keeps its `blueprint` at the end of `__init__`. A part that was replaced, a setting that
was changed, a hook or a method set on an object then differ from it, and the parts themselves run.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ['as_built', 'blueprint']

_NO_SETTINGS = 'training', 'blueprint'


def as_built(
    model: Any, # A module, or whatever has parts
    cls: type, # What a fast path stands for: `model` is of a subclass, or without steps and parts of this very class
    *steps: str, # Methods that it stands for: neither a subclass nor the object has others
    **parts: type, # Parts that it stands for, by attribute: of this very class, and as they were built
) -> bool:
    "May a fast path stand for `model`, or for some of its steps and parts?"
    if not steps and not parts: return type(model) is cls and vars(model).get('blueprint') == blueprint(model)  # type: ignore[arg-type]
    own = all(getattr(type(model), step) is getattr(cls, step) and step not in vars(model) for step in steps)
    return own and all(as_built(getattr(model, name), of) for name, of in parts.items())


def blueprint(module: nn.Module) -> tuple:
    "What decides besides the weights what a module computes: classes, settings, parameters and hooks of all its parts"
    return tuple((name, type(m), tuple(k for k, p in m._parameters.items() if p is not None),
                  bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks),
                  tuple((k, v) for k, v in vars(m).items() if k[0] != '_' and k not in _NO_SETTINGS and _is_setting(v)))
                 for name, m in module.named_modules())


def _is_setting(value: Any) -> bool:
    # a method that computes the same in another way says so
    if isinstance(value, Callable): return not getattr(value, 'as_built', False)  # type: ignore[arg-type]
    return value is None or isinstance(value, (int, float, str, tuple))
