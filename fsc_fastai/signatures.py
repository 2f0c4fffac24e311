"Signatures for people and for type checkers"
from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastcore import meta

__all__ = ['delegates']

_F = TypeVar('_F', bound=Callable[..., Any])


def delegates(
    to: Any, # Whose arguments take the place of `**kwargs`
) -> Callable[[_F], _F]:
    "fastcore's `delegates`, which shows the arguments of another function; type checkers still see what this one returns"
    return meta.delegates(to)
