"Cross-domain few-shot classification with explanation-guided training, as a fastai library"
from importlib import import_module
from typing import Any

__version__ = '0.1.0'


def __getattr__(name: str) -> Any:
    "A room or a file, imported when it is asked for: so that `fsc_fastai.light` needs no torch"
    if not name.startswith('_'):
        try: return import_module(f'fsc_fastai.{name}')
        except ModuleNotFoundError as e:
            if e.name != f'fsc_fastai.{name}': raise
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
