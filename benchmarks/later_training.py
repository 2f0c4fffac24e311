"""What a step of each training method costs beside the plain step, in time and memory: GNN on ResNet10.

    python -m benchmarks.later_training [--size 84] [--rounds 5] [--threads 1]

Peak memory is what is allocated on a GPU, or what is resident on a CPU, in a process of its own for each.
"""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.lft import lft_callback
from benchmarks.noise import N_WAY, ByLearner, Episodes, noise_episode, peak_memory, peaks_of_processes
from benchmarks.options import DEVICE, SIZE, options
from benchmarks.timing import note, paired, report
from fsc_fastai.callback.afa import AFACallback
from fsc_fastai.callback.ata import ATACallback
from fsc_fastai.callback.bsr import BSRCallback
from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.callback.ldp_net import LDPNetCallback
from fsc_fastai.callback.lft import FTCallback
from fsc_fastai.callback.maml import FirstOrderMAML
from fsc_fastai.callback.styleadv import StyleAdvCallback
from fsc_fastai.callback.svasp import SVasPCallback
from fsc_fastai.callback.wave_san import WaveSANCallback
from fsc_fastai.encode import create_encoder
from fsc_fastai.methods import GNNNet

KINDS: dict[str, Callable[[int, str], list]] = {
    'plain': lambda size, device: [],
    'LRP': lambda size, device: [LRPGuidedCallback()],
    'FT': lambda size, device: [FTCallback()],
    'LFT': lambda size, device: [lft_callback(size, device, 1, True)],
    'StyleAdv': lambda size, device: [StyleAdvCallback()],
    'SVasP': lambda size, device: [SVasPCallback()],
    'ATA': lambda size, device: [ATACallback()],
    'wave-SAN': lambda size, device: [WaveSANCallback([Episodes(1, noise_episode(size, device, seed=1))])],
    'AFA': lambda size, device: [AFACallback()],
    'FLoR': lambda size, device: [],
    'BSR': lambda size, device: [BSRCallback()],
    'LDP-Net': lambda size, device: [LDPNetCallback()],
    'first-order MAML': lambda size, device: [FirstOrderMAML()]}


def steps(kind: str, size: int, device: str, n: int = 1) -> ByLearner:
    "Training steps with the callback of a kind"
    torch.manual_seed(0)
    encoder = create_encoder('resnet10', img_size=size, flor=(.01, .01) if kind == 'FLoR' else None)
    model = GNNNet(encoder, n_way=N_WAY).to(device)
    return ByLearner(size, device, n, KINDS[kind](size, device), model)


def main() -> None:
    "Run both comparisons"
    args = options(__doc__, size=SIZE, device=DEVICE, peak=dict(choices=KINDS, help='only the peak memory of one kind of step'))
    if args.peak:
        print(peak_memory(partial(steps, args.peak, args.size, args.device, 3), args.device))
        return
    peaks = peaks_of_processes('later_training', KINDS, args.size, args.device)
    note(f'\nPeak memory of GNN/ResNet10 at {args.size} px, {args.device}')
    for kind, peak in peaks.items(): note(f'  {kind:<44}{peak:>9.0f} MB {peak / peaks["plain"]:>8.2f} x')
    n = 1 if args.device == 'cpu' else 20
    report(f'Step of GNN/ResNet10 at {args.size} px, {args.device}',
           paired({kind: steps(kind, args.size, args.device, n) for kind in KINDS}, args.rounds, dict.fromkeys(KINDS, n)))


if __name__ == '__main__': main()
