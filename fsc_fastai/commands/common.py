"What the commands share: errors without a traceback, text that does not steer the terminal, learners and classifiers from files"
from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from fastai.learner import load_learner
from fastai.torch_core import default_device
from fastcore.script import CliError

from ..answers import printable, printable_lines
from ..deploy import FewShotClassifier, learner_from_bundle
from ..deploy.hub import HUB
from ..learner.core import FSCLearner
from ..tensors import usable_device

__all__ = ['plain_errors', 'told', 'printable', 'printable_lines', 'is_bundle', 'learner_from', 'load_classifier']

def plain_errors(
    f: Callable[[], Any], # The work of a command
) -> Any:
    "Run `f` and return its result. An error that the user can mend becomes a `CliError`: its message without a traceback"
    try: return f()
    except (ValueError, TypeError, OSError) as e: raise CliError(printable_lines(f'{type(e).__name__}: {e}')) from e


@contextmanager
def told() -> Iterator[None]:
    "Within this context the library's progress messages are printed on the terminal"
    log, handler = logging.getLogger('fsc_fastai'), logging.StreamHandler(sys.stdout)
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try: yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def is_bundle(
    source: str | Path, # A file, a folder or `hf://owner/name`
) -> bool:
    "Is `source` a folder, or on a hub, as a saved classifier is, and not a file, as a pickle is?"
    return str(source).startswith(HUB) or Path(source).is_dir()


def learner_from(
    source: str | Path, # File that `fsc_train` or `learn.export` wrote, or the folder of a saved classifier
    device: str | None = 'cpu', # Where to put the model, such as `cuda:1`; None: fastai's default, a GPU if there is one
) -> FSCLearner:
    """Load a learner from a file or from a bundle.

    A file is a pickle, which executes what its writer put into it; a line on the error stream says so. Raises
    `FileNotFoundError` if there is no such file, and `ValueError` if it holds no learner, or for a device that is not here.
    """
    place = usable_device(default_device() if device is None else device)
    learn = learner_from_bundle(source) if is_bundle(source) else _unpickled(Path(source))
    learn.model.to(place)
    learn.dls.to(place)
    return learn


def _unpickled(file: Path) -> FSCLearner:
    if not file.is_file(): raise FileNotFoundError(f'no learner in {file}: a file that fsc_train or learn.export wrote is needed')
    print(f'{printable(file)} is a pickle: loading it executes what its writer put into it. The folder of a saved classifier '
          '(learn.export(bundle=…), fsc_train --bundle, fsc_deploy) does the same here, and executes nothing', file=sys.stderr)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='load_learner')  # which says the same to those who write Python
        try: learn = load_learner(file)
        except (UnpicklingError, EOFError, RuntimeError, AttributeError) as e:
            raise ValueError(f'{file} holds no learner ({e}): a file that fsc_train or learn.export wrote is needed') from e
    if not isinstance(learn, FSCLearner):
        raise ValueError(f'{file} holds a {type(learn).__name__}, not a learner of this library')
    return learn


def load_classifier(
    model: str | Path, # Folder of a saved classifier, or `hf://owner/name`
    support: Path | None = None, # Folder with a folder of images per class, in place of the saved examples
) -> FewShotClassifier:
    "Load a saved classifier, as `from_pretrained` does and with its errors; with `support` it is fitted to other examples"
    classifier = FewShotClassifier.from_pretrained(model)
    return classifier.fit(support) if support else classifier
