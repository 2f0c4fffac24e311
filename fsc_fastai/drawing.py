"What all figures share"
from __future__ import annotations

from typing import Any

__all__ = ['no_math']


def no_math(
    name: Any, # Of a class or a domain, to be drawn
) -> str:
    "The name for matplotlib, which takes what stands between two `$` for a formula"
    return str(name).replace('$', r'\$')
