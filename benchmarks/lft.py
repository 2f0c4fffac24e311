"""What a step of learned feature-wise transformation costs, in time and memory: RelationNet on ResNet10.

    python -m benchmarks.lft [--size 84] [--rounds 5] [--threads 1] [--steps 1]

Time is compared with the shortest hand-written step with `functional_call` (limit 1.15 x), peak memory with a plain training step
(limit 2.5 x). Memory is what is allocated on a GPU, or what is resident on a CPU, in a process of its own for each.
"""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import Adam
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.options import DEVICE, SIZE, options
from benchmarks.timing import note, paired, report
from fsc_fastai.callback.lft import LFTCallback
from fsc_fastai.data.episode import Episode, EpisodeLabel
from fsc_fastai.encode import create_encoder
from fsc_fastai.encode.transformation import add_ft
from fsc_fastai.methods import RelationNet
from fsc_fastai.methods.base import FewShotModel

TIME_LIMIT, MEMORY_LIMIT = 1.15, 2.5
N_WAY, N_SHOT, N_QUERY, N_CLASSES = 5, 5, 16, 64
LR = 1e-3


class Episodes:
    "One episode of noise, again and again: what is measured is the step, not the loading"
    n_inp = 3

    def __init__(self, n: int, size: int, device: str, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        def part(per_class: int) -> tuple[Tensor, EpisodeLabel]:
            x = torch.randn(N_WAY * per_class, 3, size, size, generator=generator).to(device)
            y = torch.arange(N_WAY, device=device).repeat_interleave(per_class)
            return x, EpisodeLabel(y, classes=tuple(range(N_WAY)))
        self.episode = Episode(*part(N_SHOT), *part(N_QUERY))
        self.n, self.dataset, self.vocab = n, self, range(N_CLASSES)

    def __len__(self) -> int: return self.n
    def __iter__(self) -> Iterator[Episode]: return iter([self.episode] * self.n)


def relation_net(size: int, device: str) -> RelationNet:
    torch.manual_seed(0)
    return RelationNet(create_encoder('resnet10', img_size=size), n_way=N_WAY).to(device)


class ByLearner:
    "Training steps by fastai, without validation"
    def __init__(self, size: int, device: str, steps: int, cbs: list, model: FewShotModel | None = None,
                 opt_func: Callable = Adam):
        dls = DataLoaders(Episodes(steps, size, device), Episodes(0, size, device), device=torch.device(device))
        dls.n_inp, dls.vocab = 3, dls.train.vocab
        model = relation_net(size, device) if model is None else model
        self.learn = Learner(dls, model, loss_func=model.default_loss(), cbs=cbs, opt_func=opt_func)
        self.learn.logger = lambda *args: None

    def __call__(self) -> None:
        with self.learn.no_bar(): self.learn.fit(1, LR)


class ByHand:
    "The algorithm in as few lines as it takes"
    def __init__(self, size: int, device: str, steps: int, aux: bool):
        self.model, self.steps, self.aux = relation_net(size, device).train(), steps, aux
        self.ft = nn.ModuleList(add_ft(self.model).values())
        self.head = nn.Linear(512, N_CLASSES).to(device)
        self.opt = torch.optim.Adam([*self.model.parameters(), *self.head.parameters()], LR)
        self.ft_opt = torch.optim.Adam(self.ft.parameters(), LR, weight_decay=1e-8)
        self.seen, self.unseen = (Episodes(1, size, device, seed).episode for seed in (0, 1))
        self.labels = torch.cat([self.seen.support_y, self.seen.query_y]).as_subclass(Tensor)

    def __call__(self) -> None:
        for _ in range(self.steps): self.step()

    def step(self) -> None:
        model, loss_func = self.model, self.model.default_loss()
        names, weights = zip(*model.named_parameters(), strict=True)
        maps = model.encode(torch.cat([self.seen.support_x, self.seen.query_x]))
        n = self.seen.support_x.shape[0]
        loss = loss_func(model.forward_head(maps[:n], self.seen.support_y, maps[n:]), self.seen.query_y)
        grads = torch.autograd.grad(loss, weights, create_graph=True)
        self.opt.zero_grad()
        if self.aux: F.cross_entropy(self.head(maps.mean((2, 3))), self.labels).backward(retain_graph=True)
        fast = {name: w - LR * g for name, w, g in zip(names, weights, grads, strict=True)}
        model.eval()
        unseen = loss_func(functional_call(model, fast, tuple(self.unseen[:3])), self.unseen.query_y)
        model.train()
        for p, g in zip(self.ft.parameters(), torch.autograd.grad(unseen, list(self.ft.parameters())), strict=True): p.grad = g
        for w, g in zip(weights, grads, strict=True): w.grad = g.detach() if w.grad is None else w.grad + g.detach()
        self.opt.step()
        self.ft_opt.step()


def lft_callback(size: int, device: str, steps: int, aux: bool) -> LFTCallback:
    return LFTCallback([Episodes(steps, size, device, seed=1)], aux=N_CLASSES if aux else False)


def step_time(size: int, device: str, steps: int, rounds: int) -> None:
    "Both kinds of step, without and with the auxiliary loss, beside the plain step"
    for aux in (False, True):
        ours = f'LFTCallback(aux={aux})'
        timings = paired({'hand-written step': ByHand(size, device, steps, aux),
                          ours: ByLearner(size, device, steps, [lft_callback(size, device, steps, aux)]),
                          'plain step': ByLearner(size, device, steps, [])}, rounds)
        report(f'LFT step of RN/ResNet10 at {size} px, {steps} step(s), {device}', timings, {ours: TIME_LIMIT})


def peak_memory(kind: str, size: int, device: str, steps: int = 3) -> float:
    "Peak of some training steps in MB, not counting what the imports take"
    before = resident('VmRSS')
    ByLearner(size, device, steps, [] if kind == 'plain' else [lft_callback(size, device, steps, kind == 'lft_aux')])()
    return torch.cuda.max_memory_allocated() / 2**20 if device == 'cuda' else resident('VmHWM') - before


def resident(what: str) -> float:
    "MB of this process: VmRSS now, VmHWM at most (unlike getrusage's, it does not begin with the parent's)"
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 2**10


def step_memory(size: int, device: str) -> None:
    "Peak memory of each kind of step, measured in a process of its own that returns freed memory at once"
    env = os.environ | {'MALLOC_MMAP_THRESHOLD_': '65536'}
    command = [sys.executable, '-m', 'benchmarks.lft', '--size', str(size), '--device', device, '--peak']
    peaks = {kind: float(subprocess.run([*command, kind], check=True, capture_output=True, text=True, env=env).stdout.split()[-1])
             for kind in ('plain', 'lft', 'lft_aux')}
    note(f'\nPeak memory of RN/ResNet10 at {size} px, {device}')
    for kind, peak in peaks.items():
        ratio = peak / peaks['plain']
        verdict = '' if kind == 'plain' else f'   limit {MEMORY_LIMIT:g}: {"met" if ratio <= MEMORY_LIMIT else "MISSED"}'
        note(f'  {kind:<44}{peak:>9.0f} MB {ratio:>8.2f} x{verdict}')


def main() -> None:
    "Run both comparisons"
    args = options(__doc__, size=SIZE, device=DEVICE,
                   steps=dict(type=int, help='training steps a run; default: 1, on a GPU 20'),
                   peak=dict(choices=('plain', 'lft', 'lft_aux'), help='only the peak memory of one kind of step'))
    if args.peak:
        print(peak_memory(args.peak, args.size, args.device))
        return
    step_memory(args.size, args.device)
    # a fit begins and ends with a few milliseconds of fastai's, which are nothing beside one step on a CPU only
    step_time(args.size, args.device, args.steps or (1 if args.device == 'cpu' else 20), args.rounds)


if __name__ == '__main__': main()
