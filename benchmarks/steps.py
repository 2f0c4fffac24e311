"""Training steps on a GPU: how long each takes by the clock, and how much of that its kernels compute.

    python -m benchmarks.steps [--sizes 84 224] [--rounds 5]

RelationNet and GNNNet on ResNet10, CrossAttentionNet on ResNet12, 5-way 5-shot 16 queries, by fastai's `Learner.fit` with Adam:
plain, explanation-guided, with learned transformations, and both. The rest of the time the card waits for the host.
"""
from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from fastai.callback.core import Callback
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.lft import N_CLASSES, N_WAY, ByLearner, lft_callback
from benchmarks.options import options
from benchmarks.timing import note, seconds
from fsc_fastai.callback.lrp import LRPGuidedCallback
from fsc_fastai.models import create_fsc_model

METHODS = dict(RelationNet='resnet10', CrossAttentionNet='resnet12', GNNNet='resnet10')
STEPS, PROFILED = {84: 20, 224: 6}, 3


def kinds(size: int, steps: int) -> dict[str, list[Callback]]:
    "The callbacks of each kind of step"
    def lft() -> Callback: return lft_callback(size, 'cuda', steps, False)
    return {'plain': [], 'guided': [LRPGuidedCallback()], 'LFT': [lft()], 'LFT and guided': [lft(), LRPGuidedCallback()]}


def learner(method: str, size: int, kind: str, steps: int) -> ByLearner:
    "Training of some steps, always with the same weights"
    torch.manual_seed(0)
    model = create_fsc_model(method, METHODS[method], n_way=N_WAY, n_classes=N_CLASSES, img_size=size).to('cuda')
    return ByLearner(size, 'cuda', steps, kinds(size, steps)[kind], model)


def kernel_seconds(run: Callable[[], None]) -> float:
    "Sum of the times of all kernels and copies on the card"
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        run()
        torch.cuda.synchronize()
    return sum(e.self_device_time_total for e in recorded.events() if e.device_type == DeviceType.CUDA) / 1e6


def measure(method: str, size: int, kind: str, rounds: int) -> tuple[float, float, float]:
    "Seconds a step by the clock, seconds of its kernels, and the peak of memory in GB"
    steps = STEPS[size]
    run = learner(method, size, kind, steps)
    run()  # chooses algorithms
    torch.cuda.reset_peak_memory_stats()
    took = statistics.median(seconds(run) for _ in range(rounds)) / steps
    peak = torch.cuda.max_memory_allocated() / 2**30
    del run
    few = learner(method, size, kind, PROFILED)
    few()
    return took, kernel_seconds(few) / PROFILED, peak


def main() -> None:
    args = options(__doc__, sizes=dict(type=int, nargs='+', default=[84, 224]))
    header = ['| | px | step | times plain | kernels | busy | memory |', '|---|---|---|---|---|---|---|']
    for size in args.sizes:
        lines = [*header]
        for method, arch in METHODS.items():
            plain = 0.
            for kind in kinds(size, 1):
                took, kernels, peak = measure(method, size, kind, args.rounds)
                plain = plain or took
                lines.append(f'| {method} on {arch}, {kind} | {size} | {1e3 * took:.1f} ms | {took / plain:.2f} | '
                             f'{1e3 * kernels:.1f} ms | {100 * kernels / took:.0f} % | {peak:.1f} GB |')
        note('\n'.join(lines))


if __name__ == '__main__': main()
