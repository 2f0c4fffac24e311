"A classifier as two files of plain data: JSON, and tensors in the safetensors format"
from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ..files import atomic_write
from ..models import FewShotModel
from .checks import FORMAT, LIBRARIES, BundleError, built_model, read_json, read_tensors
from .heads import deployed_head, free_norms
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
    """What a saved classifier holds. Reading executes nothing that the folder holds, and follows no path that it names.

    The JSON names the tensor file by its SHA-256 and is written last: a `write` that is cut off leaves the old bundle in force.
    """
    model: FewShotModel # With the `config` that builds it again
    preprocess: Preprocess # From an image to what the encoder takes
    reject: float | None = None # Below this probability an image is none of the classes
    temperature: float = 1. # Of the probabilities
    support: Support | None = None # The examples

    def write(self,
        folder: str | os.PathLike, # Made if it is not there
    ) -> Path:
        "Write both files. Raises `ValueError` for a model that was not built by `create_fsc_model`"
        if not hasattr(self.model, 'config'):
            raise ValueError(f'This {type(self.model).__name__} has no `config` to be built from again: use create_fsc_model')
        folder = Path(folder)
        tensors = save(self._tensors())
        digest = sha256(tensors).hexdigest()
        text = json.dumps(self._values(digest), indent=1, ensure_ascii=False)
        with atomic_write(folder/f'tensors-{digest}.safetensors') as part: part.write_bytes(tensors)
        with atomic_write(folder/JSON_NAME) as part: part.write_text(text, encoding='utf-8')
        for f in folder.iterdir():
            if (m := TENSORS.fullmatch(f.name)) and m[1] != digest: f.unlink()
        return folder

    def _tensors(self) -> dict[str, Tensor]:
        kept = {MODEL + k: v for k, v in _model_state(self.model).items()}
        if self.support is not None:
            kept[FEATURES] = self.support.features
            if self.support.thumbnails is not None: kept[THUMBNAILS] = self.support.thumbnails
        # clones, because safetensors refuses tensors that share memory
        return {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in kept.items()}

    def _values(self, digest: str) -> dict[str, Any]:
        classes = self.support.classes if self.support else []
        labels = [classes.index(o) for o in self.support.labels] if self.support else []
        return dict(format=FORMAT, libraries={name: version(name) for name in LIBRARIES}, model=self.model.config,
                    preprocess=vars(self.preprocess), classes=classes, labels=labels, reject=self.reject,
                    temperature=self.temperature, sha256=digest)

    @classmethod
    def read(cls,
        folder: str | os.PathLike, # As `write` made it
        arch: nn.Module | None = None, # The backbone, where it was a module of your own
    ) -> Bundle:
        "Raises `FileNotFoundError` where there is no bundle, and `BundleError` for one that can not be trusted to be whole"
        folder = Path(folder)
        if not (folder/JSON_NAME).is_file(): raise FileNotFoundError(f'no classifier in {folder}: it has no {JSON_NAME}')
        try: return cls._read(folder, arch)
        except (OSError, ValueError) as e: raise BundleError(f'{folder}: {e}') from e

    @classmethod
    def _read(cls, folder: Path, arch: nn.Module | None) -> Bundle:
        values = read_json(folder/JSON_NAME)
        if not (m := TENSORS.fullmatch(f'tensors-{values["sha256"]}.safetensors')): raise BundleError('sha256 is no SHA-256')
        try: preprocess = Preprocess(**values['preprocess'])
        except (TypeError, ValueError, OverflowError) as e: raise BundleError(f'preprocess: {e}') from e
        like = built_model(values['model'], arch, meta=True)
        wanted = {MODEL + k: v for k, v in like.state_dict().items()} | _support_like(like, len(values['labels']))
        tensors = read_tensors(folder/m[0], m[1], wanted, optional={THUMBNAILS})
        model = built_model(values['model'], arch)
        model.load_state_dict({k.removeprefix(MODEL): v for k, v in tensors.items() if k.startswith(MODEL)})
        labels = tuple(values['classes'][i] for i in values['labels'])
        support = Support(tensors[FEATURES], labels, tensors.get(THUMBNAILS)) if labels else None
        return cls(model.eval(), preprocess, values['reject'], values['temperature'], support)


def _support_like(model: FewShotModel, n_support: int) -> dict[str, Tensor]:
    "Tensors without content like those that the bundle holds of the examples"
    if not n_support: return {}
    shape: Any = model.encoder.out_shape
    maps = torch.empty(n_support, *shape, device='meta')
    thumbnails = torch.empty(n_support, 3, THUMBNAIL, THUMBNAIL, dtype=torch.uint8, device='meta')
    return {FEATURES: deployed_head(model).compact(maps), THUMBNAILS: thumbnails}
