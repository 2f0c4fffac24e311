"Small steps that several methods share"
from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from fastai.torch_core import TensorBase
from torch import Tensor, nn

from . import quietly  # noqa: F401, I001  before fastai

__all__ = ['Pool', 'pool_vectors', 'vector_size', 'plain', 'single', 'full_precision', 'unit', 'cosine', 'evaluating',
           'largest_output', 'usable_device']

Pool = Literal['avg', 'flatten']


def vector_size(
    out_shape: tuple[int, int, int], # (C, H, W) of the encoder's maps
    pool: Pool, # 'avg' or 'flatten'
) -> int:
    "Length of the vectors that `pool_vectors` returns. Raises `ValueError` for an unknown `pool`"
    if pool not in get_args(Pool): raise ValueError(f'pool={pool!r}: choose from {get_args(Pool)}')
    c, h, w = out_shape
    return c if pool == 'avg' else c * h * w


def pool_vectors(
    f: Tensor, # Feature maps `(n, C, H, W)`, or vectors already `(n, C)`
    pool: Pool = 'avg', # 'avg': the spatial mean, for maps of any size; 'flatten': every position is a feature
    size: int | None = None, # Length that the vectors must have; None: any
) -> Tensor:
    "Pool maps to vectors `(n, C)` or `(n, C·H·W)`. Raises `ValueError` if their length is not `size`"
    vectors = f.mean((-2, -1)) if pool == 'avg' and f.ndim == 4 else f.flatten(1)
    if size is not None and vectors.shape[1] != size:
        raise ValueError(f'Features of shape {tuple(f.shape[1:])} make vectors of {vectors.shape[1]}, the model was built for '
                         f"{size}: use images of the encoder's img_size, or a model with pool='avg'")
    return vectors


def plain(x: Tensor) -> Tensor:
    "`x` as a plain tensor: fastai's subclasses send every operation through Python"
    return x.as_subclass(Tensor) if isinstance(x, TensorBase) else x


def single(x: Tensor) -> Tensor:
    "`x` in single precision at least, since squares leave the range of half precision"
    return x if x.dtype == torch.float64 else x.float()


def full_precision(x: Tensor) -> AbstractContextManager:
    "A context without autocast on the device of `x`, for squares, means and temperatures that need single precision"
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def unit(
    x: Tensor, # Features
    dim: int = -1, # Dimension along which the length is measured
) -> Tensor:
    "`x` at unit length along `dim`, in single precision at least; 0 stays 0, with finite derivatives of every order"
    x = single(x)
    if not torch.is_grad_enabled(): return F.normalize(x, dim=dim)
    # where a ReLU left nothing, the second derivative of the norm would be nan
    nothing = (x.detach() == 0).all(dim, keepdim=True)
    return F.normalize(torch.where(nothing, 1., x), dim=dim).masked_fill(nothing, 0.)


def cosine(
    a: Tensor, # `(n or 1, m or 1, C)`
    b: Tensor, # `(n or 1, m or 1, C)`
) -> Tensor:
    """Cosine similarities `(n, m)`. Broadcast dimensions are not materialised.

    >>> cosine(torch.tensor([[[1., 0.]]]), torch.tensor([[[2., 0.], [0., 3.]]]))
    tensor([[1., 0.]])
    """
    with full_precision(a): return torch.einsum('nmc,nmc->nm', unit(a), unit(b))


def usable_device(
    name: str | torch.device, # `cpu`, `cuda`, `cuda:1`, `mps`, …
) -> torch.device:
    "The device of this name. Raises `ValueError` where this machine has none"
    try: return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as e:
        why = str(e).splitlines()[0]
        raise ValueError(f'nothing can be computed on device {str(name)!r} here ({why}): cpu always can') from e


@contextmanager
def largest_output(
    module: nn.Module, # A module that runs inside the block
) -> Iterator[list[int]]:
    "A list that holds, after the block, the size in bytes of the largest output of any part of the module"
    found = [1]
    def see(part, args, out):
        if isinstance(out, Tensor): found[0] = max(found[0], out.nbytes)
    hooks = [part.register_forward_hook(see) for part in module.modules()]
    try: yield found
    finally:
        for hook in hooks: hook.remove()


@contextmanager
def evaluating(
    model: nn.Module, # Its modules may be in different modes, as with frozen batch norms
) -> Iterator[None]:
    "Put the model into eval mode inside the block, and every module back into its own mode afterwards"
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try: yield
    finally:
        for m, training in modes: m.training = training
