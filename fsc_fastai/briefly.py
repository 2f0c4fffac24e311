"Short texts for records of tensors: shapes instead of numbers"
from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

__all__ = ['brief_repr']


def _brief(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)): return f'{type(value).__name__}{tuple(value.shape)}'
    if isinstance(value, dict): return '{' + ', '.join(f'{k!r}: {_brief(v)}' for k, v in value.items()) + '}'
    if type(value) in (tuple, list): return '[' + ', '.join(map(_brief, value)) + ']'
    return repr(value)


def brief_repr(
    self: Any, # A dataclass or a named tuple
) -> str:
    "A `__repr__` for records with tensors, which shows type and shape of each tensor"
    fields = self._asdict() if hasattr(self, '_asdict') else vars(self)
    return f'{type(self).__name__}({", ".join(f"{k}={_brief(v)}" for k, v in fields.items())})'
