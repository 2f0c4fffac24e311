"What the commands share: errors as one line, learners from files"
from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from fastai.learner import load_learner
from fastcore.script import CliError

from .learner import FSCLearner

__all__ = ['plain_errors', 'learner_from']


def plain_errors(
    f: Callable[[], Any], # What a command does
) -> Any:
    "Run `f` and return its result; what the user can mend is a line on the terminal, not a traceback"
    try: return f()
    except (ValueError, TypeError, OSError) as e: raise CliError(f'{type(e).__name__}: {e}') from e


def learner_from(
    file: Path, # What `fsc_train` or `learn.export` wrote
) -> FSCLearner:
    """The learner in a file; fastai's warning of pickles is left to the help of the commands.

    Raises `FileNotFoundError` where there is no file, and `ValueError` for a file with something else in it.
    """
    if not file.is_file(): raise FileNotFoundError(f'no learner in {file}: a file that fsc_train or learn.export wrote is needed')
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='load_learner')
        try: learn = load_learner(file)
        except (UnpicklingError, EOFError, RuntimeError, AttributeError) as e:
            raise ValueError(f'{file} holds no learner ({e}): a file that fsc_train or learn.export wrote is needed') from e
    if not isinstance(learn, FSCLearner):
        raise ValueError(f'{file} holds a {type(learn).__name__}, not a learner of this library')
    return learn
