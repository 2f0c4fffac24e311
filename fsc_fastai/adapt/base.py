"The base class of adaptations, and adaptations by name"
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
           'check_shots', 'checked_support', 'adapted_model', 'trainable_copy']

T = TypeVar('T', bound='type[Adaptation]')


class Adaptation(ABC):
    """Adapts a model to the support set of an episode; the result is again a model with `encode`, `process` and `classify`.

        adapted = PMF()(learn.model, support_x, support_y)      # transductive adaptations also take query_x
        scores = adapted(support_x, support_y, query_x)         # (n_query, n_way)

    Neither the given model nor the random state of the process changes; an adaptation that draws random numbers has a `seed`.
    No adaptation sees the label of a query.
    """
    name = '' # The registered name
    transductive = False # The queries take part, so that each may change the answers to the others
    on_images = True # The encoder changes; False: the adapted model also serves other support sets
    least_shots = 1 # Examples that each class must have

    @abstractmethod
    def __call__(self,
        model: FewShotModel, # A trained model in eval mode
        support_x: Tensor, # Images `(n_support, channels, height, width)`
        support_y: Tensor, # Labels `(n_support,)`, or one-hot `(n_support, n_way)`
        query_x: Tensor | None = None, # Unlabelled images, for transductive adaptations
    ) -> FewShotModel:
        "The adapted model in eval mode. Raises `ValueError` for a support set that cannot be used"


_adaptations: dict[str, type[Adaptation]] = {}


def register_adaptation(
    name: str, # The name in lower case, as in `--adapt pa`
) -> Callable[[T], T]:
    "Make an adaptation known by name: a decorator of its class"
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
    **settings: Any, # Arguments of the adaptation
) -> Adaptation:
    "An adaptation by name. Raises `ValueError` for an unknown name (and offers the nearest ones) or setting"
    if name not in _adaptations: raise unknown('adaptation', name, list_adaptations())
    try: return _adaptations[name](**settings)
    except TypeError as e: raise ValueError(f'adaptation {name!r} with {settings}: {e}') from e


def as_adaptation(
    spec: Adaptation | str | None, # An adaptation, or its name with settings, as in 'pa' or 'pa:steps=10,lr=0.1'
) -> Adaptation | None:
    """The adaptation that a user specified; None stays None.

    Raises `ValueError` for an unknown name or setting, and `TypeError` for anything that is neither adaptation nor text.

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
    seed: int, # Seed of the random numbers inside the block
    device: torch.device, # The device that computes
) -> Iterator[None]:
    "Inside the block random numbers follow the seed and gradients are on; the random state is restored afterwards"
    devices = [device] if device.type == 'cuda' else []
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        yield


def check_shots(
    adaptation: Adaptation, # Who needs the support, for the message of an error
    shots: Tensor, # Examples of each class `(…, n_way)`
) -> None:
    "Raise `ValueError` for a single class, or for too few examples of a class"
    name = type(adaptation).__name__
    if shots.shape[-1] < 2: raise ValueError(f'{name}: a support of one class leaves nothing to tell apart')
    # an exporter of graphs knows no values
    if not torch.compiler.is_compiling() and (shots < adaptation.least_shots).any():
        raise ValueError(f'{name} needs {adaptation.least_shots} examples of each class, found {int(shots.min())} of one: '
                         'give more, or use a method that starts from class means, such as SimpleShot')


def checked_support(
    adaptation: Adaptation, # Who needs the support, for the message of an error
    support_y: Tensor, # Labels `(n_support,)`, or one-hot
) -> Tensor:
    "Integer labels `(n_support,)`. Raises `ValueError` for a single class, or for too few examples of a class"
    member = one_hot(support_y)
    check_shots(adaptation, member.sum(0))
    return member.argmax(1)


def adapted_model(
    cls: type[FewShotModel], # Class of the adapted model
    encoder: Any, # Its encoder
    n_way: int, # Classes of the support
    **kwargs: Any, # Further arguments of the class
) -> Any:
    "A model with this encoder. If the encoder knows its image size, the model has a `config`, so that it can be saved"
    if not hasattr(encoder, 'img_size'): return cls(encoder, n_way=n_way, **kwargs)
    return create_fsc_model(cls, encoder, n_way, img_size=encoder.img_size, in_chans=encoder.in_chans, **kwargs)


def trainable_copy(encoder: nn.Module) -> nn.Module:
    "A copy in eval mode whose weights all take gradients; channels last, which is up to twice as fast on a CPU"
    return copy.deepcopy(encoder).eval().requires_grad_(True).to(memory_format=torch.channels_last)
