"The golden files that the tests run: every one that matches a pattern in the folder `$FSC_GOLDEN` or below it"
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

COPY = Path(__file__).parent/'golden'
GOLDEN = Path(os.environ.get('FSC_GOLDEN') or COPY)


def golden(pattern: str) -> list[Path]:
    "The files that match `pattern`; where `$FSC_GOLDEN` has none of a kind, those of our copy, so that no kind goes untested"
    if not GOLDEN.is_dir(): raise FileNotFoundError(f'$FSC_GOLDEN: no folder {GOLDEN}')
    files = sorted(GOLDEN.rglob(pattern)) or sorted(COPY.rglob(pattern))
    if not files: raise FileNotFoundError(f'no golden file {pattern} in {GOLDEN} or {COPY}')
    return files


def recorded(pattern: str):
    "Every golden file of a pattern, as parameters `path`"
    return pytest.mark.parametrize('path', golden(pattern), ids=lambda path: path.stem)


def same(ours, theirs, tol: float, name: str = '') -> None:
    "`ours` is `theirs` but for `tol` of its largest value"
    ours, theirs = torch.as_tensor(ours).detach(), torch.as_tensor(theirs)
    assert ours.shape == theirs.shape, f'{name}: {tuple(ours.shape)}, recorded {tuple(theirs.shape)}'
    assert ours.isfinite().all() and theirs.isfinite().all(), name
    assert (ours - theirs).abs().max() <= tol * theirs.abs().max(), f'{name}: {(ours - theirs).abs().max() / theirs.abs().max()}'


def load(path: Path, device: str = 'cpu') -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    "The arrays of a golden file as tensors, and its weights (stored under `w.<name>`) as a state dict"
    with np.load(path) as z: arrays = {k: z[k] for k in z.files if z[k].dtype.kind in 'fiu'}
    tensors = {k: torch.from_numpy(v).to(device) for k, v in arrays.items()}
    return ({k: v for k, v in tensors.items() if not k.startswith('w.')},
            {k[2:]: v for k, v in tensors.items() if k.startswith('w.')})


def fill_module() -> ModuleType:
    "`fill.py` of the golden folder: closed formulas for weights and images of encoders and of `adapt/`"
    return _module('fill')


def noise_module() -> ModuleType:
    "`noise.py` of the golden folder: closed formulas for weights and images of `training/`"
    return _module('noise')


def noise_state(keys) -> dict[str, torch.Tensor]:
    "Weights by `noise.py`, of names and shapes"
    noise = noise_module()
    return {name: torch.from_numpy(np.asarray(noise.weights(name, tuple(shape)))) for name, shape in keys}


def _module(name: str) -> ModuleType:
    file = golden(f'{name}.py')[0]
    spec = importlib.util.spec_from_file_location(f'golden_{name}', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
