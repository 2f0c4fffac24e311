"The error for an unknown name"
from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ['unknown']


def unknown(
    kind: str, # Kind of the name: method, domain, …
    name: str, # The unknown name
    known: Iterable[str], # All known names
    all_of_them: str | None = None, # Where to find them all; None: list them
) -> ValueError:
    "A `ValueError` to raise, which offers the nearest names"
    known = list(known)
    near = get_close_matches(str(name).lower(), known, 3, .4)
    meant = f'did you mean {" or ".join(near)}? ' if near else ''
    return ValueError(f'no {kind} {name!r}: {meant}{all_of_them or "there are " + ", ".join(known)}')
