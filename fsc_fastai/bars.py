"Progress bars with the remaining time, in terminals and notebooks only"
from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from fastcore.imports import IN_NOTEBOOK
from fastprogress.fastprogress import progress_bar

__all__ = ['Bar', 'watched']

_T = TypeVar('_T')


def watched() -> bool:
    "Is the output a terminal or a notebook? A bar in a file, a pipe or a log would be a line of thousands of characters"
    return IN_NOTEBOOK or sys.stdout.isatty()


class Bar:
    """A progress bar for several loops, removed at the end, and drawn only in terminals and notebooks.

    >>> bar = Bar(total=5)
    >>> [*bar.through('ab'), *bar.through('c', worth=3)], bar.done
    (['a', 'b', 'c'], 5)
    """
    def __init__(self,
        total: int, # Steps of all loops
        show: bool = True, # Draw the bar
        comment: str = '', # Text beside the time, which may be changed
    ):
        self.done, self.comment = 0, comment
        self._bar: Any = progress_bar(range(total), leave=False) if total and show and watched() else None
        self._reach(0)

    def through(self,
        items: Iterable[_T], # Of one loop
        *,
        each: int = 1, # Steps that an item stands for
        worth: int | None = None, # Steps of the whole loop, reached when it ends; None: those of its items
    ) -> Iterator[_T]:
        "Yield the items; each is counted after its turn in the loop"
        start = self.done
        for item in items:
            yield item
            self._reach(self.done + each if worth is None else min(self.done + each, start + worth))
        if worth is not None: self._reach(start + worth)

    def _reach(self, done: int) -> None:
        self.done = done
        if self._bar is None: return
        self._bar.comment = self.comment
        self._bar.update(min(done, self._bar.total))
