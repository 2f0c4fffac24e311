"Atomic writes, and weights in files that record the settings they were made with"
from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

__all__ = ['atomic_write', 'save_weights', 'load_weights', 'check_made', 'broken']

_numbers = count()
_POSIX = os.name == 'posix'  # elsewhere a folder cannot be flushed, nor a process be asked for harmlessly


@contextmanager
def atomic_write(
    path: str | os.PathLike, # The file, or the folder; what stands there stays until the new one is whole
) -> Iterator[Path]:
    """Yield a temporary path to write to, which is renamed to `path` in one step when the block ends without an error.

    By then it is on the disk, so not even a power cut leaves half a file. Threads, processes and machines may write the same file
    at once; the last one wins. An error leaves nothing behind, and the next write of the same file removes the leftovers of a
    killed process. A folder can only replace an empty folder. Raises `OSError`, which names the file, if the system refuses to
    write (a full disk, a read-only folder); other errors in the block pass unchanged.
    """
    target = Path(os.path.realpath(path))  # through a link, as `open` would
    part = target.with_name(f'.{target.name}.{_machine()}-{os.getpid()}-{next(_numbers)}.part')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_parts_of_the_dead(target)
        yield part
        _flush(part)
        os.replace(part, target)
        _flush_entry(target)
    except (OSError, RuntimeError) as e:
        if not _refused(e, part): raise
        raise OSError(f'{path} cannot be written ({type(e).__name__}: {e}). What stood there is untouched: make room, or '
                      'choose a folder that can be written, and run the same again') from e
    finally: _remove(part)


def _refused(e: Exception, part: Path) -> bool:
    "Whether the system refused to write here, rather than that something else failed"
    if not isinstance(e, OSError): return 'inline_container' in str(e)  # what torch.save makes of a full disk
    return e.errno is not None and (e.filename is None or Path(e.filename) in (part, *part.parents))


def _machine() -> str:
    "Tells this machine from others that write to the same disk, since their processes may have the same numbers"
    return sha256(platform.node().encode()).hexdigest()[:8]


def _remove_parts_of_the_dead(target: Path) -> None:
    start = f'.{target.name}.{_machine()}-'
    for part in target.parent.iterdir() if _POSIX else ():
        if part.name.startswith(start) and not _alive(int(part.name.removeprefix(start).split('-')[0])): _remove(part)


def _alive(pid: int) -> bool:
    "Whether there is a process of this number on this machine"
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    except PermissionError: pass  # another user's
    return True


def _flush(path: Path) -> None:
    "Bring a file, or a folder with all that it holds, onto the disk"
    if path.is_dir(): os.sync() if _POSIX else None
    else:
        with path.open('rb+') as file: os.fsync(file.fileno())


def _flush_entry(path: Path) -> None:
    "Bring onto the disk that the folder of `path` has it"
    if not _POSIX: return
    folder = os.open(path.parent, os.O_RDONLY)
    try: os.fsync(folder)
    finally: os.close(folder)


def _remove(part: Path) -> None:
    if part.is_dir(): shutil.rmtree(part, ignore_errors=True)
    elif part.parent.is_dir(): part.unlink(missing_ok=True)


def save_weights(
    module: nn.Module, # The module
    path: Path, # The safetensors file
    made: dict[str, Any], # Plain values that the weights depend on, which `load_weights` compares
) -> None:
    "Write the state of a module as safetensors in one step. Raises `OSError` if that fails"
    tensors = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    # as bytes, because `save_file` writes a part of its own, which a kill would leave behind
    # with one entry of metadata, because safetensors would write several in any order
    weights = save(tensors, dict(about=json.dumps(dict(made=made, sha256=_digest(tensors)))))
    with atomic_write(path) as part: part.write_bytes(weights)


def load_weights(
    path: Path, # File that `save_weights` wrote
    made: dict[str, Any], # Plain values that the weights must depend on
) -> dict[str, Tensor]:
    "The saved state. Raises `ValueError`, which names the file, if it is broken or was made with other settings"
    try:
        with safe_open(path, 'pt') as file:
            about = json.loads((file.metadata() or {}).get('about', '{}'))
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  no dict
        if about.get('sha256') != _digest(tensors): raise ValueError('its content is not what was saved')
    except (SafetensorError, ValueError, AttributeError) as e: raise broken(path, e) from e
    check_made(path, about.get('made'), made)
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    "SHA-256 of names and contents"
    digest = sha256()
    for name, x in sorted(tensors.items()):
        digest.update(f'{name} {x.dtype} {tuple(x.shape)}'.encode())
        digest.update(x.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def broken(path: Path, e: Exception) -> ValueError:
    "The error for a file that is not what was written"
    return ValueError(f'{path} is broken ({type(e).__name__}: {e}). Remove it: what it held is then computed again')


def check_made(
    path: Path, # The file
    found: Any, # Plain values that it was made with
    wanted: Any, # Plain values that it must be made with
) -> None:
    "Raise `ValueError`, which names the file and the differences, if the values differ"
    there, here = _flat(found), _flat(json.loads(json.dumps(wanted)))
    differs = [f'{k}={there.get(k)!r} (now {here.get(k)!r})' for k in {**here, **there} if there.get(k) != here.get(k)]
    if differs:
        more = f' and {len(differs) - 6} more' if len(differs) > 6 else ''
        raise ValueError(f'{path} was made with other settings: {", ".join(differs[:6])}{more}. Write to another place, or '
                         'remove it to begin anew')


def _flat(values: Any, name: str = '') -> dict[str, Any]:
    "The leaves of nested dictionaries, by their joined names"
    if not isinstance(values, dict): return {name: values}
    return {k: v for key, o in values.items() for k, v in _flat(o, f'{name}.{key}' if name else str(key)).items()}
