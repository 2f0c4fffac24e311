"Training where no terminal shows a bar: one line per epoch"
from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from fastai.callback import progress  # noqa: F401  adds `no_bar` to Learner
from fastai.learner import Learner

__all__ = ['plain_rows', 'plain_output']


@contextmanager
def plain_rows(
    learn: Learner, # Any fastai learner
) -> Iterator[None]:
    "Inside, `learn` draws no bars and prints one line per epoch: `epoch 3  train_loss 0.4123  accuracy 0.8250  time 00:12`"
    def row(values: list[Any]) -> None:
        shown = (f'{value:.4f}' if isinstance(value, float) else value for value in values)
        print('  '.join(f'{name} {value}' for name, value in zip(learn.recorder.metric_names, shown, strict=False)), flush=True)
    before, learn.logger = learn.logger, row
    try:
        with learn.no_bar(): yield
    finally: learn.logger = before


def plain_output(
    learn: Learner, # Any fastai learner
) -> AbstractContextManager:
    "`plain_rows` where progress bars would fill a log; nothing on a terminal"
    return nullcontext() if sys.stdout.isatty() else plain_rows(learn)
