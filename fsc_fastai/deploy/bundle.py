"A classifier as two files of plain data: JSON and safetensors"
from __future__ import annotations

import io
import json
import os
import re
import warnings
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from ..files import atomic_write
from ..methods import FewShotModel
from ..methods.head import free_norms
from .checks import FORMAT, LIBRARIES, MAX_JSON, BundleError, method_of, preprocess_of, read_json
from .layout import TensorFile, built_model, halved, laid_out
from .preprocess import Preprocess
from .support import THUMBNAIL, Support

__all__ = ['Bundle', 'BundleError', 'JSON_NAME']

JSON_NAME = 'classifier.json'
TENSORS = re.compile(r'tensors-([0-9a-f]{64})\.safetensors')
FEATURES, THUMBNAILS, MODEL = 'support.features', 'support.thumbnails', 'model.'


def _model_state(model: nn.Module) -> dict[str, Tensor]:
    "The weights, without statistics that `fit` fixed: those follow from the examples"
    fixed = {f'{name}.running_{kind}' for name in free_norms(model) for kind in ('mean', 'var')}
    return {k: v for k, v in model.state_dict().items() if k not in fixed}


@dataclass
class Bundle:
    """The content of a saved classifier. Reading executes nothing in the folder and follows no path that its files name.

    The JSON names the tensor file by its SHA-256 and is written last, so an interrupted `write` leaves the old bundle intact.
    """
    model: FewShotModel # A model with a `config`, from which it is built again
    preprocess: Preprocess # Turns an image into the input of the encoder
    reject: float | None = None # An image whose largest probability is lower belongs to none of the classes
    temperature: float = 1. # Divisor of the scores
    support: Support | None = None # The examples
    keep: float | None = None # Share of images of the classes to answer
    calibrated: str | None = None # What chose the temperature
    half: bool = False # Matrices are stored in half precision

    def write(self,
        folder: str | os.PathLike, # Created if needed
    ) -> Path:
        """Write both files. They are read back first, so that an older bundle is only replaced by one that can be read.

        Raises `ValueError` for a model that was not built by `create_fsc_model`, and `BundleError` for anything that `read` would
        refuse.
        """
        if not hasattr(self.model, 'config'):
            raise ValueError(f'This {type(self.model).__name__} has no `config` to be built from again: use create_fsc_model')
        folder, tensors = Path(folder), save(self._tensors())
        digest = sha256(tensors).hexdigest()
        arch = None if self.model.config['arch'] else getattr(self.model.encoder, 'body', self.model.encoder)
        try:
            text = json.dumps(self._values(digest), indent=1, ensure_ascii=False, default=_plain).encode('utf-8', 'surrogatepass')
            own = self._own_method()
            self._parse(read_json(JSON_NAME, text, own), io.BytesIO(tensors), arch, own)
        except ValueError as e: raise BundleError(f'{folder}: not saved, as it could not be loaded again: {e}') from e
        with atomic_write(folder/f'tensors-{digest}.safetensors') as part: part.write_bytes(tensors)
        with atomic_write(folder/JSON_NAME) as part: part.write_bytes(text)
        for f in folder.iterdir():
            if (m := TENSORS.fullmatch(f.name)) and m[1] != digest: f.unlink()
        return folder

    def _own_method(self) -> type[FewShotModel] | None:
        "The class of the model, where its name alone would not find it"
        cls = type(self.model)
        try: known = method_of(self.model.config)
        except BundleError:
            warnings.warn(f'{cls.__name__} is not a registered method: load this with from_pretrained(folder, method='
                          f'{cls.__name__}), or put @register_method above the class', stacklevel=4)
            return cls
        if known is not cls: raise BundleError(f'model: the method called {cls.__name__} is another class: register this one')
        return None

    def _tensors(self) -> dict[str, Tensor]:
        kept = {MODEL + k: v for k, v in _model_state(self.model).items()}
        if self.support is not None:
            kept[FEATURES] = self.support.features
            if self.support.thumbnails is not None: kept[THUMBNAILS] = self.support.thumbnails
        # clones, because safetensors refuses tensors that share memory
        plain = {k: halved(v) if self.half else v for k, v in kept.items()}
        return {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in plain.items()}

    def _values(self, digest: str) -> dict[str, Any]:
        classes = self.support.classes if self.support else []
        position = {c: i for i, c in enumerate(classes)}
        labels = [position[o] for o in self.support.labels] if self.support else []
        return dict(format=FORMAT, libraries={name: version(name) for name in LIBRARIES}, model=self.model.config,
                    preprocess=asdict(self.preprocess), classes=classes, labels=labels, reject=self.reject,
                    temperature=self.temperature, keep=self.keep, calibrated=self.calibrated, half=self.half, sha256=digest)

    @classmethod
    def read(cls,
        folder: str | os.PathLike, # Folder that `write` wrote
        arch: nn.Module | None = None, # The backbone, if it was a module of your own
        method: type[FewShotModel] | None = None, # The method, if it was a class of your own that is not registered
    ) -> Bundle:
        "Read a bundle. Raises `FileNotFoundError` where there is none, and `BundleError` for one that is corrupt"
        folder = Path(folder)
        if not (folder/JSON_NAME).is_file():
            hint = f'. to_onnx wrote it: python -m fsc_fastai.light {folder} IMAGES' if (folder/'onnx.json').is_file() else ''
            raise FileNotFoundError(f'no classifier in {folder}: it has no {JSON_NAME}{hint}')
        try:
            with (folder/JSON_NAME).open('rb') as f: text = f.read(MAX_JSON + 1)
            values = read_json(JSON_NAME, text, method)
            path = folder/_tensor_name(values['sha256'])
            if not path.is_file(): raise BundleError(f'{path.name} is missing')
            with path.open('rb') as f: return cls._parse(values, f, arch, method)
        except (OSError, ValueError) as e: raise BundleError(f'{folder}: {e}') from e

    @classmethod
    def _parse(cls, values: dict, file: BinaryIO, arch: nn.Module | None, own: type[FewShotModel] | None) -> Bundle:
        "From checked values and the file of the tensors"
        config, preprocess, labels = values['model'], preprocess_of(values['preprocess']), values['labels']
        method, tensor_file = method_of(config, own), TensorFile(file, _tensor_name(values['sha256']), values['half'])
        like, f = laid_out(config, method, arch, preprocess.shape, tensor_file)
        wanted = {MODEL + k: v for k, v in like.state_dict().items()} | _support_like(like, f, len(labels))
        tensor_file.check(wanted, optional={THUMBNAILS})
        tensors = tensor_file.read(values['sha256'], wanted)
        model = built_model(config, method, arch)
        model.load_state_dict({k.removeprefix(MODEL): v for k, v in tensors.items() if k.startswith(MODEL)})
        named = tuple(values['classes'][i] for i in labels)
        support = Support(tensors[FEATURES], named, tensors.get(THUMBNAILS)) if named else None
        said = {k: values[k] for k in ('reject', 'temperature', 'keep', 'calibrated', 'half')}
        return cls(model.eval(), preprocess, support=support, **said)


def _tensor_name(digest: str) -> str:
    name = f'tensors-{digest}.safetensors'
    if not TENSORS.fullmatch(name): raise BundleError('sha256 is no SHA-256')
    return name


def _plain(value: Any) -> Any:
    "A number of numpy or torch as JSON can hold it"
    if isinstance(value, Tensor): value = value.detach().cpu().numpy()
    if isinstance(value, np.generic | np.ndarray) and value.size == 1: return value.item()
    raise BundleError(f'{value!r:.100} is no plain value')


def _support_like(model: FewShotModel, f: Tensor, n_support: int) -> dict[str, Tensor]:
    "Tensors without content like those that the bundle holds of the examples"
    if not n_support: return {}
    maps = torch.empty(n_support, *f.shape[1:], device='meta')
    thumbnails = torch.empty(n_support, 3, THUMBNAIL, THUMBNAIL, dtype=torch.uint8, device='meta')
    return {FEATURES: model.head(statistics='support').compact(maps), THUMBNAILS: thumbnails}
