"""Training steps on a GPU: how long each takes by the clock, and how much of that its kernels compute.

    python -m benchmarks.steps [--sizes 84 224] [--methods RelationNet …] [--optimizers fastai fused] [--rounds 3]

RelationNet and GNNNet on ResNet10, CrossAttentionNet on ResNet12, 5-way 5-shot 16 queries, by fastai's `Learner.fit`: plain,
explanation-guided, both as one CUDA graph, and with learned transformations; with fastai's Adam, and with torch's, fused. A step
lasts from the end of one to the end of the next, and what a fit takes besides, to begin and to end, is told apart. The card is
busy while kernels of a step run, and waits for the host in the rest of its time.
"""
from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from fastai.callback.core import Callback
from fastai.optimizer import Adam
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.lft import N_CLASSES, N_WAY, ByLearner, lft_callback
from benchmarks.options import options
from benchmarks.timing import note, paired
from fsc_fastai.callback.graphed_step import GraphedStep
from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.learner.fused_adam import FusedAdam
from fsc_fastai.methods import create_fsc_model

KINDS = 'plain', 'guided', 'plain, graphed', 'guided, graphed', 'LFT', 'LFT and guided'
OPTIMIZERS = dict(fastai=Adam, fused=FusedAdam)
METHODS = dict(RelationNet='resnet10', CrossAttentionNet='resnet12', GNNNet='resnet10')
STEPS, PROFILED = {84: 20, 224: 12}, 2  # of which a graph takes four to be captured


class StepEnds(Callback):
    "Where the steps of the fits end, in the order of the card's work"
    order = 1000  # behind every callback of the step

    def __init__(self): self.fits: list[list[torch.cuda.Event]] = []
    def before_fit(self): self.fits.append([])

    def after_batch(self):
        self.fits[-1].append(torch.cuda.Event(enable_timing=True))
        self.fits[-1][-1].record()

    def step_seconds(self, warm_up: int = 1) -> float:
        "Median over the steps of all fits but the first ones"
        torch.cuda.synchronize()
        return statistics.median(a.elapsed_time(b) for fit in self.fits[warm_up:] for a, b in pairwise(fit)) / 1e3


def learner(method: str, size: int, kind: str, optimizer: str, steps: int) -> ByLearner:
    "Training of some steps, always with the same weights"
    def lft() -> Callback: return lft_callback(size, 'cuda', steps, False)
    cbs = {'plain': list, 'guided': lambda: [LRPGuidedCallback()], 'LFT': lambda: [lft()],
           'plain, graphed': lambda: [GraphedStep()], 'guided, graphed': lambda: [LRPGuidedCallback(), GraphedStep()],
           'LFT and guided': lambda: [lft(), LRPGuidedCallback()]}[kind]()
    torch.manual_seed(0)
    model = create_fsc_model(method, METHODS[method], n_way=N_WAY, n_classes=N_CLASSES, img_size=size).to('cuda')
    return ByLearner(size, 'cuda', steps, [*cbs, StepEnds()], model, OPTIMIZERS[optimizer])


def kernel_seconds(run: Callable[[], None]) -> float:
    "Sum of the times of all kernels and copies on the card"
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        run()
        torch.cuda.synchronize()
    return sum(e.self_device_time_total for e in recorded.events() if e.device_type == DeviceType.CUDA) / 1e6


class Measured(NamedTuple):
    "Seconds"
    step: dict[str, float] # With each optimizer
    besides: dict[str, float] # What the fit takes but for its steps
    kernels: float # Of a step


def measure(method: str, size: int, kind: str, optimizers: list[str], rounds: int) -> Measured:
    "Fits with each optimizer, which take turns"
    runs = {name: learner(method, size, kind, name, STEPS[size]) for name in optimizers}
    fits = paired(runs, rounds)
    step = {name: run.learn.step_ends.step_seconds() for name, run in runs.items()}
    besides = {name: fits[name].seconds - STEPS[size] * step[name] for name in optimizers}
    few = learner(method, size, kind, optimizers[-1], PROFILED)
    few()  # chooses algorithms
    return Measured(step, besides, kernel_seconds(few) / PROFILED)


def row(method: str, size: int, kind: str, took: Measured, plain: Measured) -> str:
    "A line of the table"
    cells = [f'{METHODS[method]}, {kind}', size]
    for name in took.step:
        cells += [f'{1e3 * took.step[name]:.1f} ms', f'{took.step[name] / plain.step[name]:.2f}',
                  f'{1e3 * took.besides[name]:.0f} ms']
    busy = took.kernels / list(took.step.values())[-1]
    return f'| {method} on {" | ".join(map(str, cells))} | {1e3 * took.kernels:.1f} ms | {100 * busy:.0f} % |'


def main() -> None:
    args = options(__doc__, rounds=3, sizes=dict(type=int, nargs='+', default=[84, 224]),
                   methods=dict(nargs='+', default=list(METHODS)), optimizers=dict(nargs='+', default=list(OPTIMIZERS)))
    for size in args.sizes:
        columns = ['', 'px', *(o for name in args.optimizers for o in (f'{name} Adam', 'times plain', 'besides')),
                   'kernels', 'busy']
        lines = [f'| {" | ".join(columns)} |', '|' + '---|' * len(columns)]
        for method in args.methods:
            took = {kind: measure(method, size, kind, args.optimizers, args.rounds) for kind in KINDS}
            lines += [row(method, size, kind, measured, took['plain']) for kind, measured in took.items()]
        note(f'A step, and what a fit of {STEPS[size]} takes besides:\n\n' + '\n'.join(lines))


if __name__ == '__main__': main()
