"""Where the time of a training step goes: RelationNet on ResNet10, by kind of operation, as PyTorch's profiler counts it.

    python -m benchmarks.shares [--size 84] [--threads 1]

Steps are plain, guided, with learned transformations, or with both. The rest is time of fastai and our callbacks between
operations.
"""
from __future__ import annotations

from collections import Counter

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.lft import ways
from benchmarks.noise import ByLearner
from benchmarks.options import DEVICE, SIZE, options
from benchmarks.timing import note

KINDS = {'convolution': ('conv',), 'matrix product': ('aten::mm', 'addmm', 'bmm'), 'batch norm': ('batch_norm',),
         'pool': ('pool',), 'copies': ('copy_', 'clone', 'contiguous', 'aten::cat', 'fill_', 'zero_')}


def kind_of(name: str) -> str:
    "The kind of operation of a profiler's event"
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), 'elementwise and other')


def shares(size: int, device: str, cbs: list) -> dict[str, float]:
    "Percentage of a step that each kind of operation takes"
    run = ByLearner(size, device, 1, cbs)
    run()
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == 'cuda')) as recorded: run()
    took: Counter = Counter()
    for event in recorded.key_averages():
        if event.device_type != DeviceType.CPU: continue  # a kernel, which counts with the operation that started it
        own = event.self_device_time_total if device == 'cuda' else event.self_cpu_time_total
        took['outside of operations' if not event.key.startswith('aten::') else kind_of(event.key)] += own
    return {kind: 100 * t / took.total() for kind, t in took.most_common()}


def main() -> None:
    args = options(__doc__, rounds=None, size=SIZE, device=DEVICE)
    for name, callbacks in ways(args.size, args.device).items():
        percent = shares(args.size, args.device, callbacks())
        note(f'{name} step at {args.size} px: ' + ', '.join(f'{kind} {p:.0f} %' for kind, p in percent.items() if p >= .5))


if __name__ == '__main__': main()
