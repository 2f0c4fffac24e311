"What is checked of a saved classifier before anything is built of it"
from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models import build_model_with_cfg
from torch import Tensor, nn

from ..models import FewShotModel, create_fsc_model
from ..models.factory import get_method
from .preprocess import MAX_SIDE

__all__ = ['BundleError', 'FORMAT', 'LIBRARIES', 'read_json', 'read_tensors', 'file_hash', 'built_model']

FORMAT = 1
LIBRARIES = ('fsc_fastai', 'torch', 'timm')
MAX_JSON = 1 << 24
MAX_NUMBER = 1 << 14
FIELDS: dict[str, Any] = {'format': int, 'libraries': dict, 'model': dict, 'preprocess': dict, 'classes': list, 'labels': list,
          'reject': (float, int, type(None)), 'temperature': (float, int), 'sha256': str}
ARGUMENTS = {'method', 'arch', 'n_way', 'n_classes', 'img_size', 'in_chans', 'encoder_kwargs'}
# what makes timm open files, ask hubs or build something other than a plain model
FORBIDDEN = {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters,
             'features_only', 'out_indices'} - {'kwargs'}


class BundleError(ValueError):
    "A saved classifier is incomplete, corrupt, not what it says, or of a format that this version does not know"


def file_hash(path: Path) -> str:
    "SHA-256 of a file's content"
    digest = hashlib.sha256()
    with path.open('rb') as f:
        while chunk := f.read(1 << 20): digest.update(chunk)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    "The values of a bundle's JSON, each of its type and range. Raises `BundleError`"
    if path.stat().st_size > MAX_JSON: raise BundleError(f'{path.name} is larger than {MAX_JSON >> 20} MB')
    try: values = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as e: raise BundleError(f'{path.name} is not JSON: {e}') from e
    if not isinstance(values, dict): raise BundleError(f'{path.name} is not an object of named values')
    if values.get('format') != FORMAT:
        raise BundleError(f'format {values.get("format")!r}, but this version knows format {FORMAT}: install the version of '
                          f'fsc_fastai that wrote it ({values.get("libraries")})')
    if values.keys() != FIELDS.keys():
        raise BundleError(f'{path.name}: {", ".join(sorted(map(str, values.keys() ^ FIELDS.keys())))} missing or unknown')
    for name, kind in FIELDS.items():
        if not isinstance(values[name], kind) or isinstance(values[name], bool):
            raise BundleError(f'{path.name}: {name} is {type(values[name]).__name__}')
    _check_numbers(values)
    _check_classes(values['classes'], values['labels'])
    _check_config(values['model'])
    _warn_of_versions(values['libraries'])
    return values


def _check_numbers(values: Mapping[str, Any]) -> None:
    if not 0 < values['temperature'] < math.inf: raise BundleError(f'temperature={values["temperature"]}: wanted above 0')
    if values['reject'] is not None and not 0 <= values['reject'] <= 1:
        raise BundleError(f'reject={values["reject"]}: wanted a probability')


def _check_classes(classes: list, labels: list) -> None:
    "Classes of one type, sorted, each with an example; examples name them by position"
    if not all(type(c) is str for c in classes) and not all(type(c) is int for c in classes):
        raise BundleError('classes must be all text or all whole numbers')
    if sorted(set(classes)) != classes: raise BundleError('classes are not sorted, or one is there twice')
    if not all(type(i) is int for i in labels) or set(labels) != set(range(len(classes))):
        raise BundleError(f'labels are not positions of all {len(classes)} classes')


def _is_plain(value: Any) -> bool:
    "A number, a word or a short list of them?"
    if isinstance(value, list): return len(value) <= 64 and all(_is_plain(o) and not isinstance(o, list) for o in value)
    if isinstance(value, str): return len(value) <= 64 and not set(value) & set('/\\:')
    return value is None or isinstance(value, bool) or isinstance(value, int | float) and abs(value) <= MAX_NUMBER


def _check_config(config: dict[str, Any]) -> None:
    "Only a registered method and backbone, with plain arguments that they take"
    try: method = get_method(config.get('method', ''))
    except (ValueError, TypeError) as e: raise BundleError(f'model: {e}') from e
    allowed = ARGUMENTS | inspect.signature(method).parameters.keys() - {'encoder', 'kwargs'}
    if unknown := config.keys() - allowed: raise BundleError(f'model: unknown argument {", ".join(sorted(map(str, unknown)))}')
    arch, of_encoder = config.get('arch'), config.get('encoder_kwargs', {})
    if arch is not None and not (isinstance(arch, str) and _is_plain(arch) and timm.is_model(arch)):
        raise BundleError(f'model: {arch!r} is no backbone by name')
    if not isinstance(of_encoder, dict): raise BundleError('model: encoder_kwargs are not named values')
    if refused := of_encoder.keys() & FORBIDDEN: raise BundleError(f'model: a bundle may not set {", ".join(sorted(refused))}')
    for name, value in [*config.items(), *of_encoder.items()]:
        if name != 'encoder_kwargs' and not _is_plain(value): raise BundleError(f'model: {name} is not a plain value in range')
    sizes = [config.get(k, 1) for k in ('n_way', 'img_size', 'in_chans')]
    if not all(type(o) is int and 1 <= o <= MAX_SIDE for o in sizes):
        raise BundleError(f'model: n_way, img_size, in_chans = {sizes}: wanted 1 to {MAX_SIDE}')


def _warn_of_versions(written: Mapping[str, Any]) -> None:
    "A newer version of a library may build a model in another way, an older one lack it"
    other = [f'{name} {written.get(name)} (here {version(name)})' for name in LIBRARIES
             if str(written.get(name)).split('.')[:2] != version(name).split('.')[:2]]
    if other: warnings.warn(f'this classifier was saved with {", ".join(other)}: compare its answers', stacklevel=5)


def read_tensors(
    path: Path, # A safetensors file
    sha256: str, # Of its content
    wanted: Mapping[str, Tensor], # Tensors of the shapes and types that it must hold, by name
    optional: set[str], # Names that may be missing
) -> dict[str, Tensor]:
    "The tensors, after comparing content, names, types and shapes with what is wanted. Raises `BundleError`"
    if not path.is_file(): raise BundleError(f'{path.name} is missing')
    if file_hash(path) != sha256: raise BundleError(f'{path.name} is corrupt: its content is not what was saved')
    try:
        with safe_open(path, 'pt') as f:
            shapes = {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}  # noqa: SIM118  a file, not a mapping
            _check_shapes(shapes, {k: tuple(v.shape) for k, v in wanted.items()}, optional)
            tensors = {k: f.get_tensor(k) for k in shapes}
    except SafetensorError as e: raise BundleError(f'{path.name} is no safetensors file: {e}') from e
    for name, tensor in tensors.items():
        if tensor.dtype != wanted[name].dtype: raise BundleError(f'{name} is {tensor.dtype}, wanted {wanted[name].dtype}')
        if not tensor.isfinite().all(): raise BundleError(f'{name} holds numbers that are not finite')
    return tensors


def _check_shapes(found: Mapping[str, tuple], wanted: Mapping[str, tuple], optional: set[str]) -> None:
    missing, unknown = wanted.keys() - found.keys() - optional, found.keys() - wanted.keys()
    for kind, names in (('missing', missing), ('unknown', unknown)):
        if names: raise BundleError(f'{len(names)} tensors are {kind}, such as {min(names)}')
    for name, shape in found.items():
        if shape != wanted[name]: raise BundleError(f'{name} has the shape {shape}, wanted {wanted[name]}')


def built_model(
    config: dict[str, Any], # Checked
    arch: nn.Module | None = None, # The backbone, where the configuration names none
    meta: bool = False, # Only shapes, without memory
) -> FewShotModel:
    "The model of a configuration, without its weights. Raises `BundleError` where it can not be built"
    if config.get('arch') is None: config = {**config, 'arch': copy.deepcopy(arch)}
    device = 'meta' if meta and isinstance(config['arch'], str) else 'cpu'
    try:
        with torch.device(device): return create_fsc_model(**config)
    except Exception as e:  # a configuration from outside can break a backbone in any way
        raise BundleError(f'the model can not be built: {e}') from e
