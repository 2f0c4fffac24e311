"""Training steps on a GPU: how long each takes by the clock, and how much of that its kernels compute.

    python -m benchmarks.steps [--sizes 84 224] [--methods RelationNet …] [--optimizers fastai fused] [--rounds 3]

RelationNet and GNNNet on ResNet10, CrossAttentionNet on ResNet12, 5-way 5-shot 16 queries, by fastai's `Learner.fit`: plain,
explanation-guided, with learned transformations, and both; with fastai's Adam, and with torch's, fused. The card is busy while
kernels of a step run, and waits for the host in the rest of its time. A fit has few steps here, and what it takes to begin and to
end, for LFT the most, is shared out among them.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from fastai.callback.core import Callback
from fastai.optimizer import Adam
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.lft import N_CLASSES, N_WAY, ByLearner, lft_callback
from benchmarks.options import options
from benchmarks.timing import note, paired
from benchmarks.training import FUSED
from fsc_fastai.callback.lrp import LRPGuidedCallback
from fsc_fastai.models import create_fsc_model

KINDS = 'plain', 'guided', 'LFT', 'LFT and guided'
OPTIMIZERS = dict(fastai=Adam, fused=FUSED)
METHODS = dict(RelationNet='resnet10', CrossAttentionNet='resnet12', GNNNet='resnet10')
STEPS, PROFILED = {84: 6, 224: 2}, 2


def learner(method: str, size: int, kind: str, optimizer: str, steps: int) -> ByLearner:
    "Training of some steps, always with the same weights"
    def lft() -> Callback: return lft_callback(size, 'cuda', steps, False)
    cbs = {'plain': list, 'guided': lambda: [LRPGuidedCallback()], 'LFT': lambda: [lft()],
           'LFT and guided': lambda: [lft(), LRPGuidedCallback()]}[kind]()
    torch.manual_seed(0)
    model = create_fsc_model(method, METHODS[method], n_way=N_WAY, n_classes=N_CLASSES, img_size=size).to('cuda')
    return ByLearner(size, 'cuda', steps, cbs, model, OPTIMIZERS[optimizer])


def kernel_seconds(run: Callable[[], None]) -> float:
    "Sum of the times of all kernels and copies on the card"
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        run()
        torch.cuda.synchronize()
    return sum(e.self_device_time_total for e in recorded.events() if e.device_type == DeviceType.CUDA) / 1e6


def measure(method: str, size: int, kind: str, optimizers: list[str], rounds: int) -> tuple[dict[str, float], float]:
    "Seconds a step by the clock with each optimizer, and seconds of its kernels"
    runs = {name: learner(method, size, kind, name, STEPS[size]) for name in optimizers}
    few = learner(method, size, kind, optimizers[-1], PROFILED)
    few()  # chooses algorithms
    took = {name: t.seconds for name, t in paired(runs, rounds, dict.fromkeys(runs, STEPS[size])).items()}
    return took, kernel_seconds(few) / PROFILED


def main() -> None:
    args = options(__doc__, rounds=3, sizes=dict(type=int, nargs='+', default=[84, 224]),
                   methods=dict(nargs='+', default=list(METHODS)), optimizers=dict(nargs='+', default=list(OPTIMIZERS)))
    for size in args.sizes:
        columns = ['', 'px', *(o for name in args.optimizers for o in (f'{name} Adam', 'times plain')),
                   'kernels', 'busy']
        lines = [f'| {" | ".join(columns)} |', '|' + '---|' * len(columns)]
        for method in args.methods:
            first: dict[str, float] = {}
            for kind in KINDS:
                took, kernels = measure(method, size, kind, args.optimizers, args.rounds)
                first = first or took
                times = ' | '.join(f'{1e3 * took[o]:.1f} ms | {took[o] / first[o]:.2f}' for o in args.optimizers)
                lines.append(f'| {method} on {METHODS[method]}, {kind} | {size} | {times} | {1e3 * kernels:.1f} ms | '
                             f'{100 * kernels / took[args.optimizers[-1]]:.0f} % |')
        note(f'Fits of {STEPS[size]} steps, their beginning and end included:\n\n' + '\n'.join(lines))


if __name__ == '__main__': main()
