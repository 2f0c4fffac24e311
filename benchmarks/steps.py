"""Training steps on a GPU: how long each takes by the clock, and how much of that its kernels compute.

    python -m benchmarks.steps [--sizes 84 224] [--methods RelationNet …] [--optimizers fastai fused] [--rounds 3] [--steps 20]

RelationNet and GNNNet on ResNet10, CrossAttentionNet on ResNet12, 5-way 5-shot 16 queries, by fastai's `Learner.fit`: plain,
explanation-guided, both as one CUDA graph, and with learned transformations; with fastai's Adam, and with torch's, fused. A step
lasts from the end of the one before to its own end; the time to begin and to end a fit is given apart. The card is busy while
kernels of a step run, and waits for the host the rest of the time. On a CPU, which is only for trying this script, the time of
operators is given in place of that of kernels, and nothing is captured.
"""
from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from fastai.callback.core import Callback
from fastai.optimizer import Adam
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.lft import ways
from benchmarks.noise import BACKBONES, N_CLASSES, N_WAY, ByLearner
from benchmarks.options import DEVICE, options
from benchmarks.timing import Timing, note, paired, report
from fsc_fastai.callback.graphed_step import GraphedStep
from fsc_fastai.learner.fused_adam import FusedAdam
from fsc_fastai.methods import create_fsc_model

KINDS = 'plain', 'guided', 'plain, graphed', 'guided, graphed', 'LFT', 'LFT and guided'
OPTIMIZERS = dict(fastai=Adam, fused=FusedAdam)
PROFILED = 2
GUIDED_LIMIT = 1.5 # Of a plain step
KERNEL_LIMITS = {'plain, graphed': 1.15, 'guided, graphed': 1.15, 'LFT': 1.5} # Of the sum of its kernels
PROMISED = 'RelationNet' # What the limits are promised for


class StepEnds(Callback):
    "Records when each training step of each fit ends on the device"
    order = 1000  # behind every callback of the step

    def __init__(self): self.fits: list[list] = []
    def before_fit(self): self.fits.append([])

    def after_batch(self):
        if not self.xb[0].is_cuda: self.fits[-1].append(time.process_time())
        else:
            self.fits[-1].append(torch.cuda.Event(enable_timing=True))
            self.fits[-1][-1].record()

    def step_seconds(self, warm_up: int = 1) -> float:
        "Median time of a step over all fits but the first"
        pairs = [pair for fit in self.fits[warm_up:] for pair in pairwise(fit)]
        if isinstance(pairs[0][0], float): return statistics.median(b - a for a, b in pairs)
        torch.cuda.synchronize()
        return statistics.median(a.elapsed_time(b) for a, b in pairs) / 1e3


def learner(method: str, size: int, kind: str, optimizer: str, steps: int, device: str) -> ByLearner:
    "A fit of some steps, always with the same weights"
    way, _, graphed = kind.partition(', ')
    cbs = ways(size, device, steps)[way]() + ([GraphedStep()] if graphed else [])
    torch.manual_seed(0)
    model = create_fsc_model(method, BACKBONES[method], n_way=N_WAY, n_classes=N_CLASSES, img_size=size).to(device)
    return ByLearner(size, device, steps, [*cbs, StepEnds()], model, OPTIMIZERS[optimizer])


def kernel_seconds(run: Callable[[], None], device: str) -> float:
    "Seconds that all kernels and copies of a run take on the card together"
    on_card = device == 'cuda'
    with profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU]) as recorded:
        run()
        if on_card: torch.cuda.synchronize()
    if not on_card: return sum(e.self_cpu_time_total for e in recorded.key_averages()) / 1e6
    return sum(e.self_device_time_total for e in recorded.events() if e.device_type == DeviceType.CUDA) / 1e6


class Measured(NamedTuple):
    "What was measured of one way to train, in seconds"
    step: dict[str, float] # With each optimizer
    besides: dict[str, float] # What the fit takes but for its steps
    kernels: float # Of a step


def measure(method: str, size: int, kind: str, args: argparse.Namespace) -> Measured:
    "Measure fits with each optimizer; they take turns"
    runs = {name: learner(method, size, kind, name, args.steps, args.device) for name in args.optimizers}
    fits = paired(runs, args.rounds)
    step = {name: run.learn.step_ends.step_seconds() for name, run in runs.items()}
    besides = {name: fits[name].seconds - args.steps * step[name] for name in args.optimizers}
    few = learner(method, size, kind, args.optimizers[-1], PROFILED, args.device)
    few()  # chooses algorithms
    return Measured(step, besides, kernel_seconds(few, args.device) / PROFILED)


def limits(method: str, size: int, took: dict[str, Measured]) -> None:
    "Report what is promised of a method's steps with the last optimizer"
    step = {kind: list(measured.step.values())[-1] for kind, measured in took.items()}
    promised = method == PROMISED
    plain, guided = 'plain, graphed', 'guided, graphed'
    report(f'{method} at {size} px: a guided step by a plain one',
           {name: Timing(step[name], step[name] / step[plain]) for name in (plain, guided)},
           {guided: GUIDED_LIMIT} if promised else None)
    report(f'{method} at {size} px: a step by the sum of its kernels',
           {kind: Timing(step[kind], step[kind] / took[kind].kernels) for kind in KERNEL_LIMITS},
           KERNEL_LIMITS if promised else None)


def row(method: str, size: int, kind: str, took: Measured, plain: Measured) -> str:
    "A line of the Markdown table"
    cells = [f'{BACKBONES[method]}, {kind}', size]
    for name in took.step:
        cells += [f'{1e3 * took.step[name]:.1f} ms', f'{took.step[name] / plain.step[name]:.2f}',
                  f'{1e3 * took.besides[name]:.0f} ms']
    busy = took.kernels / list(took.step.values())[-1]
    return f'| {method} on {" | ".join(map(str, cells))} | {1e3 * took.kernels:.1f} ms | {100 * busy:.0f} % |'


def main() -> None:
    args = options(__doc__, rounds=3, sizes=dict(type=int, nargs='+', default=[84, 224]),
                   methods=dict(nargs='+', default=list(BACKBONES)), optimizers=dict(nargs='+', default=list(OPTIMIZERS)),
                   steps=dict(type=int, default=20, help='of a fit, of which a graph takes four to be captured'), device=DEVICE)
    for size in args.sizes:
        columns = ['', 'px', *(o for name in args.optimizers for o in (f'{name} Adam', 'times plain', 'besides')),
                   'kernels', 'busy']
        lines = [f'| {" | ".join(columns)} |', '|' + '---|' * len(columns)]
        for method in args.methods:
            took = {kind: measure(method, size, kind, args) for kind in KINDS}
            lines += [row(method, size, kind, measured, took['plain']) for kind, measured in took.items()]
            limits(method, size, took)
        note(f'A step, and what a fit of {args.steps} takes besides:\n\n' + '\n'.join(lines))


if __name__ == '__main__': main()
