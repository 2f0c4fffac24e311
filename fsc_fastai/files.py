"Files that are whole or not there: a reader, or the next run, never finds half of one"
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

__all__ = ['write_atomically', 'save_weights']


def write_atomically(
    path: Path, # The file; what stands there stays until the new one is whole
    content: str | Callable[[Path], object], # Its text, or what writes it to a path
) -> None:
    "Write a file in one step. Raises an `OSError` that names it where that fails (a full disk, a folder that is read-only)"
    part = path.with_name(f'.{path.name}.part')
    try:
        if callable(content): content(part)
        else: part.write_text(content, encoding='utf-8')
        os.replace(part, path)
    except Exception as e:
        # torch and safetensors have errors of their own for what the system refuses
        raise OSError(f'{path} can not be written ({type(e).__name__}: {e}). What stood there is untouched: make room, or '
                      'choose a folder that can be written, and run the same again') from e
    finally:
        if part.parent.is_dir(): part.unlink(missing_ok=True)


def save_weights(
    module: nn.Module, # Whose state
    path: Path, # Of the safetensors file
) -> None:
    "Write the module's state as safetensors, in one step; `OSError` where that fails"
    write_atomically(path, lambda part: save_file({k: v.contiguous() for k, v in module.state_dict().items()}, part))
