"Options that benchmarks share"
from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch

__all__ = ['options', 'SIZE', 'DEVICE']

SIZE: dict[str, Any] = dict(type=int, default=84, help='side of the images')
DEVICE: dict[str, Any] = dict(default='cuda' if torch.cuda.is_available() else 'cpu')


def options(
    doc: str | None, # Docstring of the benchmark's module
    rounds: int | None = 5, # Default of `--rounds`; None: it has none
    **own: dict[str, Any], # Further options: name to the settings of `add_argument`
) -> argparse.Namespace:
    "The options of the command line, with `threads` set and torch's warnings about itself silenced"
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if rounds: parser.add_argument('--rounds', type=int, default=rounds, help='paired runs')
    for name, settings in {'threads': dict(type=int, default=1, help='on a CPU'), **own}.items():
        parser.add_argument(f'--{name.replace("_", "-")}', **settings)
    args = parser.parse_args()
    warnings.filterwarnings('ignore', category=FutureWarning)
    if isinstance(args.threads, int): torch.set_num_threads(args.threads)
    return args
