"The tensors of a saved classifier: their expected shapes, and reading them; sizes are checked before any work is done"
from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Set
from hashlib import sha256
from math import prod
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..encode.encoder import timm_body
from ..methods import FewShotModel, create_fsc_model
from ..tensors import evaluating
from .checks import BundleError

__all__ = ['TensorFile', 'halved', 'built_model', 'laid_out']

MAX_HEADER = 1 << 20
MAX_TENSORS, MAX_MADE, MAX_STEPS = 3000, 2200, 40_000 # The largest model of timm takes 2500, 1700 and 32,000
BODY = 'model.encoder.body.'
AT_ONCE = 100 << 20 # Bytes of one tensor within the encoder, for one image


def halved(
    x: Tensor, # Tensor of a model or of its examples
) -> Tensor:
    "Matrices in half precision; statistics and biases are returned unchanged"
    return x.half() if x.dtype == torch.float32 and x.ndim > 1 else x


class TensorFile:
    """A safetensors file that is read once from beginning to end, so that its content cannot change between check and use.

    The constructor reads the header. Raises `BundleError` for anything that is no such file.
    """
    def __init__(self,
        file: BinaryIO, # The file, at its beginning
        name: str, # Name of the file, for errors
        half: bool = False, # Its matrices are in half precision
    ):
        self.file, self.name, self.half = file, name, half
        self.size = file.seek(0, 2)
        file.seek(0)
        self.head = file.read(8)
        length = int.from_bytes(self.head, 'little')
        if not 2 <= length <= min(MAX_HEADER, self.size - 8):
            raise BundleError(f'{name} is no safetensors file: its header would have {length:,} bytes')
        self.head += file.read(length)
        try: self.shapes, self.sizes = self._entries()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            raise BundleError(f'{name} is no safetensors file: its header does not list tensors ({e!r:.80})') from e
        if (size := len(self.head) + sum(self.sizes.values())) != self.size:
            raise BundleError(f'{name} is incomplete or corrupt: it has {self.size:,} bytes, its header lists {size:,}')
        if len(self.shapes) > MAX_TENSORS: raise BundleError(f'{name} has {len(self.shapes)} tensors: at most {MAX_TENSORS}')

    def _entries(self) -> tuple[dict[str, tuple], dict[str, int]]:
        values = json.loads(self.head[8:])
        values.pop('__metadata__', None)
        shapes = {k: tuple(v['shape']) for k, v in values.items()}
        return shapes, {k: end - begin for k, (begin, end) in ((k, v['data_offsets']) for k, v in values.items())}

    def check(self,
        wanted: Mapping[str, Tensor], # Tensors with the required shapes and types, by name
        optional: Set[str] = frozenset(), # Names that may be missing
        within: str = '', # Check only names with this beginning
    ) -> None:
        "Check names, shapes and sizes. Raises `BundleError` if they are not as wanted"
        found = {name for name in self.shapes if name.startswith(within)}
        missing, unknown = wanted.keys() - found - optional, found - wanted.keys()
        for kind, names in (('missing', missing), ('unknown', unknown)):
            if names: raise BundleError(f'{len(names)} tensors are {kind}, such as {min(names)[:100]}')
        for name in found:
            like, shape = self._stored(wanted[name]), self.shapes[name]
            if shape != like.shape: raise BundleError(f'{name} has the shape {str(shape)[:60]}, wanted {tuple(like.shape)}')
            if self.sizes[name] != like.nbytes:
                raise BundleError(f'{name} has {str(self.sizes[name])[:20]} bytes, wanted {like.nbytes} of {like.dtype}')

    def read(self,
        digest: str, # SHA-256 of the whole file
        wanted: Mapping[str, Tensor], # As for `check`, which must be called first
    ) -> dict[str, Tensor]:
        "All tensors. Raises `BundleError` if their content is not what was saved, or not finite"
        data = self.head + self.file.read(self.size - len(self.head))
        if sha256(data).hexdigest() != digest:
            raise BundleError(f'{self.name} is corrupt: its content is not what was saved')
        try: tensors = load(data)
        except SafetensorError as e: raise BundleError(f'{self.name} is no safetensors file: {str(e)[:200]}') from e
        for name, tensor in tensors.items():
            like = self._stored(wanted[name])
            if tensor.dtype != like.dtype: raise BundleError(f'{name} is {tensor.dtype}, wanted {like.dtype}')
            if not tensor.isfinite().all(): raise BundleError(f'{name} holds numbers that are not finite')
            if name.endswith('running_var') and (tensor < 0).any(): raise BundleError(f'{name} holds variances below 0')
        return {k: v.float() if v.dtype == torch.half else v for k, v in tensors.items()}

    def _stored(self, like: Tensor) -> Tensor: return halved(like) if self.half else like


class _Bounded(TorchDispatchMode):
    "Ends with `BundleError` what takes more steps or larger tensors than a model of so many tensors and bytes needs"
    def __init__(self, n_tensors: int, n_bytes: int):
        super().__init__()
        self.made, self.steps, self.largest = 100 + 3 * n_tensors // 2, 2000 + 40 * n_tensors, max(AT_ONCE, n_bytes)

    def at_most(self, made: int, steps: int) -> _Bounded:
        "The same with these bounds besides"
        self.made, self.steps = min(self.made, made), min(self.steps, steps)
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.steps -= 1
        self.made -= func is torch.ops.aten.empty.memory_format
        if min(self.steps, self.made) < 0: raise BundleError('model: it would have far more layers than there are tensors for it')
        # in place nothing changes in a tensor without memory; initialisation is half of the work
        if func._schema.name.endswith('_') and args and isinstance(args[0], Tensor) and args[0].is_meta: return args[0]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and (size := prod(out.shape) * out.element_size()) > self.largest:
            raise BundleError(f'model, preprocess: one image would take a tensor of {size >> 20} MB inside the model: '
                              f'at most {self.largest >> 20}')
        return out


def built_model(
    config: Mapping[str, Any], # A checked configuration
    method: type[FewShotModel], # Its method
    arch: nn.Module | None = None, # The backbone, if the configuration names none
) -> FewShotModel:
    "The model of a configuration, without its weights. Raises `BundleError` if it cannot be built"
    if config.get('arch') is None: config = {**config, 'arch': copy.deepcopy(arch)}
    return _built(create_fsc_model, **{**config, 'method': method})


def _built(build: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try: return build(*args, **kwargs)
    except Exception as e:  # a configuration from outside can break a backbone in any way
        raise _bound(e) or BundleError(f'the model cannot be built: {str(e)[:500]}') from e


def _bound(e: BaseException | None) -> BundleError | None:
    "The error of `_Bounded` that led to another one"
    while e is not None and not isinstance(e, BundleError): e = e.__cause__ or e.__context__
    return e


@torch.no_grad()
def laid_out(
    config: Mapping[str, Any], # A checked configuration
    method: type[FewShotModel], # Its method
    arch: nn.Module | None, # The backbone, if the configuration names none
    shape: tuple[int, int, int], # (channels, height, width) of its images
    file: TensorFile, # File of the model, whose size limits the work
) -> tuple[FewShotModel, Tensor]:
    """The model without memory for its weights, and a feature map of one image `(1, C, H, W)`, also without memory.

    Raises `BundleError` if there is no such model, or if building it takes more work than the tensors of the file justify.
    """
    device, bounded = 'cpu', lambda: _Bounded(len(file.shapes), file.size)  # a module of the user's own may need memory
    if config.get('arch') is not None:
        device = 'meta'
        with torch.device(device), bounded().at_most(MAX_MADE, MAX_STEPS):
            arch = _built(timm_body, config['arch'], False, config.get('img_size', 84), config.get('in_chans', 3),
                          **(config.get('encoder_kwargs') or {}))
        # what an image takes, even without memory, is only paid for a backbone that is in the file
        file.check({BODY + k: v for k, v in arch.state_dict().items()}, within=BODY)
    with torch.device(device), bounded():
        model = built_model({**config, 'arch': None}, method, arch)
        try:
            with evaluating(model): return model, model.encode(torch.zeros(1, *shape)).to('meta')
        except Exception as e:  # as above
            raise _bound(e) or BundleError(f'preprocess: the model takes no images of {shape}: {str(e)[:500]}') from e
