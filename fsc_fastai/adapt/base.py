"What an adaptation is, and adaptations by name"
from __future__ import annotations

import ast
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..methods.base import FewShotModel, one_hot
from ..methods.registry import create_fsc_model
from ..nearest import unknown

__all__ = ['Adaptation', 'register_adaptation', 'list_adaptations', 'get_adaptation', 'as_adaptation', 'seeded',
           'checked_support', 'adapted_model', 'trainable_copy']

T = TypeVar('T', bound='type[Adaptation]')


class Adaptation(ABC):
    """Makes of a model and the support of an episode a model again, with `encode`, `process` and `classify`.

        adapted = PMF()(learn.model, support_x, support_y)      # and query_x, where it is transductive
        scores = adapted(support_x, support_y, query_x)         # (n_query, n_way)

    The model that it is given stays as it is, and so do the random numbers of the process: `seed`, where an adaptation draws
    any, says what comes out. No adaptation sees the label of a query.
    """
    name = '' # As registered
    transductive = False # Do the queries take part, and so in each other's answers?
    on_images = True # Does the encoder change? False: a model made for one support is right for every other
    least_shots = 1 # Examples that each class must have

    @abstractmethod
    def __call__(self,
        model: FewShotModel, # Trained; in eval mode
        support_x: Tensor, # Images `(n_support, channels, height, width)`
        support_y: Tensor, # Labels `(n_support,)`, or one-hot `(n_support, n_way)`
        query_x: Tensor | None = None, # Unlabelled images, for transductive adaptations
    ) -> FewShotModel:
        "The adapted model, in eval mode; `ValueError` for a support that it can do nothing with"


_adaptations: dict[str, type[Adaptation]] = {}


def register_adaptation(
    name: str, # In lower case, as in `--adapt pa`
) -> Callable[[T], T]:
    "Decorator: make a class of adaptations known by name"
    def add(cls: T) -> T:
        cls.name = name
        _adaptations[name] = cls
        return cls
    return add


def list_adaptations() -> list[str]:
    "The names that `get_adaptation` knows"
    return sorted(_adaptations)


def get_adaptation(
    name: str, # One of `list_adaptations()`
    **settings: Any, # Of the adaptation
) -> Adaptation:
    "An adaptation by name. Raises `ValueError` for an unknown name (nearest names offered) or setting"
    if name not in _adaptations: raise unknown('adaptation', name, list_adaptations())
    try: return _adaptations[name](**settings)
    except TypeError as e: raise ValueError(f'adaptation {name!r} with {settings}: {e}') from e


def as_adaptation(
    spec: Adaptation | str | None, # An adaptation, or its name with settings, as in 'pa' or 'pa:steps=10,lr=0.1'
) -> Adaptation | None:
    """An adaptation from what a user wrote; None stays None. Raises `ValueError` for what names none, and
    `TypeError` for what is none.

    >>> as_adaptation('pa:steps=10').steps
    10
    """
    if spec is None or isinstance(spec, Adaptation): return spec
    if not isinstance(spec, str): raise TypeError(f'{spec!r:.60} is no adaptation: give one, its name or None')
    name, _, settings = spec.partition(':')
    try: given = {k: ast.literal_eval(v) for k, v in (part.split('=') for part in settings.split(',') if part)}
    except (ValueError, SyntaxError) as e:
        raise ValueError(f'adaptation {spec!r}: write NAME or NAME:setting=number,setting=number') from e
    return get_adaptation(name, **given)


@contextmanager
def seeded(
    seed: int, # Of the random numbers inside
    device: torch.device, # Where the computation runs
) -> Iterator[None]:
    "Random numbers by a seed, and gradients; those of the process are as before when the block ends"
    devices = [device] if device.type == 'cuda' else []
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        yield


def checked_support(
    adaptation: Adaptation, # For the error
    support_y: Tensor, # Labels `(n_support,)`, or one-hot
) -> Tensor:
    "Labels as numbers `(n_support,)`. Raises `ValueError` for one class, or too few examples of one"
    member = one_hot(support_y)
    name, shots = type(adaptation).__name__, member.sum(0)
    if len(shots) < 2: raise ValueError(f'{name}: a support of one class leaves nothing to tell apart')
    if (shots < adaptation.least_shots).any():
        raise ValueError(f'{name} needs {adaptation.least_shots} examples of each class, found {int(shots.min())} of one: '
                         'give more, or use a method that starts from class means, such as SimpleShot')
    return member.argmax(1)


def adapted_model(
    cls: type[FewShotModel], # Of the adapted model
    encoder: Any, # Its encoder
    n_way: int, # Classes of the support
    **kwargs: Any, # For the class
) -> Any:
    "The model around an encoder; with a `config`, so that it can be saved, where the encoder knows its image size"
    if not hasattr(encoder, 'img_size'): return cls(encoder, n_way=n_way, **kwargs)
    return create_fsc_model(cls, encoder, n_way, img_size=encoder.img_size, in_chans=encoder.in_chans, **kwargs)


def trainable_copy(encoder: nn.Module) -> nn.Module:
    "A copy whose every weight takes a gradient, in eval mode; channels last, which is up to twice as fast on a CPU"
    return copy.deepcopy(encoder).eval().requires_grad_(True).to(memory_format=torch.channels_last)
