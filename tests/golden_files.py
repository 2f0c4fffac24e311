"The golden files that the tests run: every one that matches a pattern in the folder `$FSC_GOLDEN`"
import importlib.util
import os
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(os.environ.get('FSC_GOLDEN') or Path(__file__).parent/'golden')


def golden(pattern: str) -> list[Path]:
    "The files that match `pattern`; none at all is an error, so that no test passes for want of a file"
    files = sorted(GOLDEN.glob(pattern))
    if not files: raise FileNotFoundError(f'no golden file {pattern} in {GOLDEN}')
    return files


def load(path: Path, device: str = 'cpu') -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    "The arrays of a golden file as tensors, and its weights (stored under `w.<name>`) as a state dict"
    with np.load(path) as z: arrays = {k: z[k] for k in z.files if z[k].dtype.kind in 'fiu'}
    tensors = {k: torch.from_numpy(v).to(device) for k, v in arrays.items()}
    return ({k: v for k, v in tensors.items() if not k.startswith('w.')},
            {k[2:]: v for k, v in tensors.items() if k.startswith('w.')})


def fill_module():
    "`fill.py` of the golden folder: closed formulas for the encoders' weights and images"
    folder = GOLDEN if (GOLDEN/'fill.py').exists() else Path(__file__).parent/'golden'
    spec = importlib.util.spec_from_file_location('golden_fill', folder/'fill.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
