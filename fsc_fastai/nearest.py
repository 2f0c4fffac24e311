"The error for a name that nothing has"
from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ['unknown']


def unknown(
    kind: str, # What was asked for: method, domain, …
    name: str, # What the user called it
    known: Iterable[str], # The names that there are
    all_of_them: str | None = None, # Where to find them all; None: they are listed
) -> ValueError:
    "An error to raise, which offers the nearest names in their place"
    known = list(known)
    near = get_close_matches(str(name).lower(), known, 3, .4)
    meant = f'did you mean {" or ".join(near)}? ' if near else ''
    return ValueError(f'no {kind} {name!r}: {meant}{all_of_them or "there are " + ", ".join(known)}')
