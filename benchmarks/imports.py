"""What `from fsc_fastai.all import *` costs over `from fastai.vision.all import *`.

    python -m benchmarks.imports [--rounds 5]

Each round starts a process, which imports fastai first and then ours. With a process for each, the difference would be
lost in the noise of the seconds that fastai takes.
"""
from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks.options import options
from benchmarks.timing import note

LIMIT = .5
CODE = """
import time
clocks = [(time.perf_counter(), time.process_time())]
for name in ('fastai.vision.all', 'fsc_fastai.all'):
    __import__(name)
    clocks.append((time.perf_counter(), time.process_time()))
print(*[b - a for before, after in zip(clocks, clocks[1:]) for a, b in zip(before, after)])
"""


def seconds_to_import() -> list[float]:
    "Wall and processor seconds that fastai takes to import, then those that ours takes after it"
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', CODE], check=True, capture_output=True, text=True)
    return list(map(float, out.stdout.split()[-4:]))


def main() -> None:
    rounds = options(__doc__).rounds
    runs = [seconds_to_import() for _ in range(rounds + 1)][1:]  # the first one warms up the machine's file cache
    fastai, fastai_cpu, ours, ours_cpu = (statistics.median(column) for column in zip(*runs, strict=True))
    note(f'Import: fastai.vision.all {fastai:.2f} s (processor {fastai_cpu:.2f} s), then fsc_fastai.all {ours:.2f} s more '
         f'(processor {ours_cpu:.2f} s)   limit {LIMIT:g} s: {"met" if ours <= LIMIT else "MISSED"}')


if __name__ == '__main__': main()
