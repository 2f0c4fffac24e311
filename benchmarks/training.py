"""Which of PyTorch's ways to make a training step faster pay on this machine: RelationNet on ResNet10, forward and backward.

    python -m benchmarks.training [--threads 1] [--rounds 5] [--size 84]

Compared with the plain step in single precision: the encoder in channels_last, the encoder compiled, and bfloat16 autocast.
Compared with fastai's optimizer, which updates one tensor after the other: torch's fused one, in a step of fastai's learner. A
way that takes many times as long, as bfloat16 does on a CPU without instructions for it, is measured only once.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from fastai.optimizer import Adam

from benchmarks.explain import step
from benchmarks.noise import ByLearner, noise_episode, relation_net
from benchmarks.options import DEVICE, SIZE, options
from benchmarks.timing import note, paired, report, seconds
from fsc_fastai.learner.fused_adam import FusedAdam

HOPELESS = 5 # Times as long as the plain step: not worth a second measurement


def steps(size: int, device: str, rounds: int) -> None:
    "Time the training step in each of the ways"
    batch = tuple(noise_episode(size, device))
    plain, channels_last, compiled = (relation_net(size, device).train() for _ in range(3))
    channels_last.encoder.to(memory_format=torch.channels_last)
    last = tuple(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in batch)
    compiled.encoder.compile()

    def bfloat16() -> None:
        with torch.autocast(device, torch.bfloat16): step(plain, batch)
    runs: dict[str, Callable[[], None]] = {
        'single precision': lambda: step(plain, batch), 'encoder in channels_last': lambda: step(channels_last, last),
        'encoder compiled': lambda: step(compiled, batch), 'bfloat16 autocast': bfloat16}
    for name in list(runs)[:3 if device == 'cpu' else None]: runs[name]()  # compiles, chooses algorithms
    once = {name: seconds(run) for name, run in runs.items()}
    plain_once = once['single precision']
    for name in [name for name, took in once.items() if took > HOPELESS * plain_once]:
        del runs[name]
        note(f'{name}, {size} px, {device}: {once[name] / plain_once:.3g} times the plain step, measured once')
    report(f'Training step of RelationNet on ResNet10, {size} px, {device}', paired(runs, rounds))


def optimizers(size: int, device: str, rounds: int) -> None:
    "Time steps of a learner with either optimizer"
    n = 1 if device == 'cpu' else 20
    kinds = {"fastai's Adam": Adam, 'FusedAdam': FusedAdam}
    report(f'{n} step(s) by a learner, RelationNet on ResNet10, {size} px, {device}', paired(
        {name: ByLearner(size, device, n, [], opt_func=opt_func) for name, opt_func in kinds.items()}, rounds,
        dict.fromkeys(kinds, n)))


def main() -> None:
    args = options(__doc__, size=SIZE, device=DEVICE)
    steps(args.size, args.device, args.rounds)
    optimizers(args.size, args.device, args.rounds)


if __name__ == '__main__': main()
