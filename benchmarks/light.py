"""`python -m fsc_fastai.light` beside `fsc_classify`: ten images, each command in a process of its own.

    python -m benchmarks.light [--rounds 5] [--arch resnet10]
"""
from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.options import SIZE, options
from benchmarks.serve import fitted, pictures
from benchmarks.timing import note

LIMIT, LARGEST = .25, 250
CLASSIFY = 'import sys; from fsc_fastai.commands.fsc_classify import fsc_classify as c; c(sys.argv[2], model=sys.argv[1])'


def cost(*command: str) -> tuple[float, float]:
    "Processor seconds and peak MB of a command; a process between measures it, so that no other children count"
    code = ('import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=-3); '
            'o = resource.getrusage(resource.RUSAGE_CHILDREN); print(o.ru_utime + o.ru_stime, o.ru_maxrss / 1024)')
    measured = [sys.executable, '-c', code, sys.executable, '-W', 'ignore', *command]
    out = subprocess.run(measured, check=True, stdout=subprocess.PIPE, text=True)
    seconds, megabytes = map(float, out.stdout.split())
    return seconds, megabytes


def main() -> None:
    args = options(__doc__, rounds=5, arch=dict(default='resnet10'), size=SIZE)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        known = fitted('proto', args.arch, args.size, 'cpu')
        bundle, graphs, images = known.save(f'{folder}/bundle'), known.to_onnx(f'{folder}/onnx'), Path(folder)/'new'
        images.mkdir()
        for i, im in enumerate(pictures(10, args.size)): im.save(images/f'{i}.png')
        commands = ('-c', CLASSIFY, str(bundle), str(images)), ('-m', 'fsc_fastai.light', str(graphs), str(images))
        # the first round warms up the machine's file cache
        runs = [[cost(*command) for command in commands] for _ in range(args.rounds + 1)][1:]
    whole, light = ([statistics.median(o[k][i] for o in runs) for i in (0, 1)] for k in (0, 1))
    ratio = statistics.median(b[0] / a[0] for a, b in runs)
    note(f'Ten images: fsc_classify {whole[0]:.2f} s of the processor and {whole[1]:.0f} MB, fsc_fastai.light {light[0]:.2f} s '
         f'and {light[1]:.0f} MB: ratio {ratio:.3f}, limit {LIMIT:g} and {LARGEST} MB: '
         f'{"met" if ratio <= LIMIT and light[1] <= LARGEST else "MISSED"}')


if __name__ == '__main__': main()
