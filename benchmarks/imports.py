"""What `from fsc_fastai.all import *` costs over `from fastai.vision.all import *`.

    python -m benchmarks.imports [--rounds 5]

Each import in a fresh process, one after the other, so that the machine's file cache is warm for both.
"""
from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

from benchmarks.timing import note

LIMIT = .5
CODE = 'import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)'


def seconds_to_import(module: str) -> float:
    "In a process of its own"
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', CODE.format(module)], check=True, capture_output=True, text=True)
    return float(out.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    rounds = parser.parse_args().rounds
    pairs = [[seconds_to_import(m) for m in ('fastai.vision.all', 'fsc_fastai.all')] for _ in range(rounds + 1)][1:]
    extra = statistics.median(ours - theirs for theirs, ours in pairs)
    note(f'Import: fastai.vision.all {statistics.median(p[0] for p in pairs):.2f} s, fsc_fastai.all {extra:.2f} s more   '
         f'limit {LIMIT:g} s: {"met" if extra <= LIMIT else "MISSED"}')


if __name__ == '__main__': main()
