"Checks of the values of a saved classifier before anything is built from them"
from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from typing import Any

import timm
from timm.models import build_model_with_cfg

from ..methods import FewShotModel
from ..methods.registry import get_method
from .preprocess import MAX_SIDE, Preprocess
from .support import check_size, text_problem

__all__ = ['BundleError', 'FORMAT', 'LIBRARIES', 'MAX_JSON', 'read_json', 'method_of', 'preprocess_of']

FORMAT = 1
LIBRARIES = ('fsc_fastai', 'torch', 'timm')
MAX_JSON = 1 << 24
MAX_NUMBER = 1 << 14
MAX_CLASSES = 1 << 24
FIELDS: dict[str, Any] = {'format': int, 'libraries': dict, 'model': dict, 'preprocess': dict, 'classes': list, 'labels': list,
          'reject': (float, int, type(None)), 'temperature': (float, int), 'sha256': str,
          'keep': (float, int, type(None)), 'calibrated': (str, type(None)), 'half': bool}
LATER: dict[str, Any] = {'keep': None, 'calibrated': 'by hand', 'half': False} # Values of older bundles, which lack these
CALIBRATED = ('examples', 'other classes', 'by hand', None)
ARGUMENTS = {'method', 'arch', 'n_way', 'n_classes', 'img_size', 'in_chans', 'encoder_kwargs'}
ALWAYS_SAVED = ('size', 'resize', 'fit', 'mean', 'std')
# what makes timm open files, ask hubs or build something other than a plain model
FORBIDDEN = {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters,
             'features_only', 'out_indices'} - {'kwargs'}


class BundleError(ValueError):
    "A saved classifier is incomplete, corrupt, contradicts itself, or has a format that this version does not know"


def read_json(
    name: str, # Name of the file
    text: bytes, # Its content
    method: type[FewShotModel] | None = None, # The method, if it was a class of your own
) -> dict[str, Any]:
    "The values of a bundle's JSON. Raises `BundleError` for values of a wrong type or range"
    if len(text) > MAX_JSON: raise BundleError(f'{name} is larger than {MAX_JSON >> 20} MB')
    try: values = json.loads(text)
    except (ValueError, RecursionError) as e: raise BundleError(f'{name} is not JSON: {str(e)[:200]}') from e
    if not isinstance(values, dict): raise BundleError(f'{name} is not an object of named values')
    if values.get('format') != FORMAT:
        raise BundleError(f'format {values.get("format")!r:.40}, but this version knows format {FORMAT}: install the version of '
                          f'fsc_fastai that wrote it ({values.get("libraries")!r:.200})')
    values = LATER | values
    if wrong := sorted(values.keys() ^ FIELDS.keys()): raise BundleError(f'{name}: {", ".join(wrong)[:200]} missing or unknown')
    for field, kind in FIELDS.items():
        if not isinstance(values[field], kind) or isinstance(values[field], bool) and kind is not bool:
            raise BundleError(f'{name}: {field} is {type(values[field]).__name__}')
    _check_number('temperature', values['temperature'], 1e-6, 1e9)
    if values['reject'] is not None: _check_number('reject', values['reject'], 0, 1)
    if values['keep'] is not None: _check_number('keep', values['keep'], 1e-6, 1 - 1e-6)
    if values['calibrated'] not in CALIBRATED: raise BundleError(f'calibrated={values["calibrated"][:40]!r}: one of {CALIBRATED}')
    _check_classes(values['classes'], values['labels'])
    _check_config(values['model'], method)
    if not all(map(_is_plain, values['libraries'].values())): raise BundleError('libraries are not names with versions')
    _warn_of_versions(values['libraries'])
    return values


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high: raise BundleError(f'{name}={str(value)[:40]}: wanted a number from {low:g} to {high:g}')


def _check_classes(classes: list, labels: list) -> None:
    "Classes of one type, sorted, each with an example; examples name them by position"
    if not all(type(c) is str for c in classes) and not all(type(c) is int for c in classes):
        raise BundleError('classes must be all text or all whole numbers')
    if sorted(set(classes)) != classes: raise BundleError('classes are not sorted, or one is there twice')
    for i, c in enumerate(classes):
        if problem := text_problem(c): raise BundleError(f'classes: number {i} {problem}')
    if not all(type(i) is int for i in labels) or set(labels) != set(range(len(classes))):
        raise BundleError(f'labels are not positions of all {len(classes)} classes')
    try: check_size(len(labels), len(classes))
    except ValueError as e: raise BundleError(f'classes: {e}') from e


def _is_plain(value: Any) -> bool:
    "A number, a word, or a short list or object of them?"
    if isinstance(value, dict):
        return len(value) <= 64 and all(_is_plain(o) and not isinstance(o, dict) for o in (*value, *value.values()))
    if isinstance(value, list): return len(value) <= 64 and all(_is_plain(o) and not isinstance(o, list | dict) for o in value)
    if isinstance(value, str): return len(value) <= 64 and not set(value) & set('/\\:')
    return value is None or isinstance(value, bool) or isinstance(value, int | float) and abs(value) <= MAX_NUMBER


def method_of(
    config: Mapping[str, Any], # Configuration of a model
    own: type[FewShotModel] | None = None, # The method, if it was a class of your own
) -> type[FewShotModel]:
    "The method class of a model: the registered one of this name, or `own`. Raises `BundleError` if it is neither"
    name = config.get('method')
    if not isinstance(name, str): raise BundleError('model: method is no name')
    if own is not None:
        if own.__name__ != name: raise BundleError(f'model: its method is {name[:64]!r}, but method={own.__name__} was passed')
        return own
    try: return get_method(name)
    except ValueError as e:
        raise BundleError(f'model: {e}. Import the module that registers it first, or pass `method=` its class') from e


def _check_config(config: dict[str, Any], own: type[FewShotModel] | None) -> None:
    "Only a known method and backbone, with plain arguments that they take"
    allowed = ARGUMENTS | inspect.signature(method_of(config, own)).parameters.keys() - {'encoder', 'kwargs'}
    if unknown := sorted(config.keys() - allowed): raise BundleError(f'model: unknown argument {", ".join(unknown)[:200]}')
    arch, of_encoder = config.get('arch'), config.get('encoder_kwargs', {})
    if arch is not None and not (isinstance(arch, str) and _is_plain(arch) and timm.is_model(arch)):
        raise BundleError(f'model: arch={str(arch)[:64]!r} is no backbone by name')
    if not isinstance(of_encoder, dict): raise BundleError('model: encoder_kwargs are not named values')
    if refused := of_encoder.keys() & FORBIDDEN: raise BundleError(f'model: a bundle may not set {", ".join(sorted(refused))}')
    counts = {'n_way', 'n_classes'}
    for name, value in [*config.items(), *of_encoder.items()]:
        if name not in {'encoder_kwargs', *counts} and not _is_plain(value):
            raise BundleError(f'model: {name[:64]} is not a plain value in range')
    _check_way(config.get('n_way', 5))
    img_size = config.get('img_size', 1)
    sides = img_size if isinstance(img_size, list) and len(img_size) == 2 else [img_size]
    whole = [('n_classes', config.get('n_classes', 0), 0, MAX_CLASSES), ('in_chans', config.get('in_chans', 3), 1, 3)]
    for name, value, low, high in [*whole, *(('img_size', side, 1, MAX_SIDE) for side in sides)]:
        if not _is_whole(value, low, high):
            raise BundleError(f'model: {name}={str(value)[:40]}: wanted {low}' + (f' to {high}' if high > low else ''))


def _is_whole(value: Any, low: int, high: int) -> bool: return type(value) is int and low <= value <= high


def _check_way(n_way: Any) -> None:
    "A number of classes, or the lowest and the highest of a model that was trained with several"
    pair = n_way if isinstance(n_way, list) and len(n_way) == 2 else [n_way, n_way]
    if not all(_is_whole(o, 1, MAX_CLASSES) for o in pair) or pair[0] > pair[1]:
        raise BundleError(f'model: n_way={str(n_way)[:40]}: wanted a whole number from 1, or a pair (lowest, highest)')


def preprocess_of(values: Mapping[str, Any]) -> Preprocess:
    "The preprocessing in a bundle's JSON. Raises `BundleError` if values are missing or wrong"
    known = {f.name for f in fields(Preprocess)}
    if wrong := sorted({*ALWAYS_SAVED} - values.keys() | values.keys() - known):
        raise BundleError(f'preprocess: {", ".join(wrong)[:200]} missing or unknown')
    try: return Preprocess(**values)
    except ValueError as e: raise BundleError(f'preprocess: {e}') from e


def _warn_of_versions(written: Mapping[str, Any]) -> None:
    "A newer version of a library may build a model in another way, an older one lack it"
    other = [f'{name} {written.get(name)} (here {version(name)})' for name in LIBRARIES
             if str(written.get(name)).split('.')[:2] != version(name).split('.')[:2]]
    if other: warnings.warn(f'this classifier was saved with {", ".join(other)}: compare its answers', stacklevel=6)
