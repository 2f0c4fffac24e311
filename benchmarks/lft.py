"""What a step of learned feature-wise transformation costs, in time and memory.

    python -m benchmarks.lft

Time against the shortest hand-written step with `functional_call` (limit 1.15×), without and with the auxiliary loss.
Peak memory against a plain training step (limit 2.5×): allocated on a GPU, resident in a process of its own on CPU.
"""
from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import Tensor, nn
from torch.func import functional_call

from fsc_fastai.callback.lft import LFTCallback
from fsc_fastai.data.episode import Episode, EpisodeLabel
from fsc_fastai.models import RelationNet, create_encoder
from fsc_fastai.models.transformation import add_ft

TIME_LIMIT, MEMORY_LIMIT = 1.15, 2.5
N_WAY, N_SHOT, N_QUERY = 5, 5, 16


class Episodes:
    "The same episode of noise, again and again: what is measured is the step, not the loading"
    n_inp = 3

    def __init__(self, n: int, size: int, device: torch.device, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        def part(per_class: int) -> tuple[Tensor, EpisodeLabel]:
            x = torch.randn(N_WAY * per_class, 3, size, size, generator=generator).to(device)
            y = torch.arange(N_WAY, device=device).repeat_interleave(per_class)
            return x, EpisodeLabel(y, classes=tuple(range(N_WAY)))
        self.episode = Episode(*part(N_SHOT), *part(N_QUERY))
        self.n, self.dataset, self.vocab = n, self, list(range(64))

    def __len__(self) -> int: return self.n
    def __iter__(self): return iter([self.episode] * self.n)


def relation_net(size: int, device: torch.device) -> RelationNet:
    torch.manual_seed(0)
    return RelationNet(create_encoder('resnet10', img_size=size), n_way=N_WAY).to(device)


def by_learner(steps: int, size: int, device: torch.device, cbs: list) -> Learner:
    "One epoch of `steps` training steps by fastai"
    dls = DataLoaders(Episodes(steps, size, device), Episodes(0, size, device), device=device)
    dls.n_inp, dls.vocab = 3, dls.train.vocab
    model = relation_net(size, device)
    learn = Learner(dls, model, loss_func=model.default_loss(), cbs=cbs)
    return learn


def fit(learn: Learner) -> None:
    learn.epoch, learn.n_epoch = 0, 1
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)


class ByHand:
    "The algorithm in as few lines as it takes"
    def __init__(self, steps: int, size: int, device: torch.device):
        self.model = relation_net(size, device).train()
        self.layers = nn.ModuleList(add_ft(self.model).values())
        self.opt = torch.optim.Adam(self.model.parameters(), 1e-3)
        self.ft_opt = torch.optim.Adam(self.layers.parameters(), 1e-3, weight_decay=1e-8)
        self.seen, self.unseen = (Episodes(steps, size, device, seed).episode for seed in (0, 1))
        self.steps = steps

    def __call__(self) -> None:
        for _ in range(self.steps): self.step()

    def step(self) -> None:
        model, loss_func = self.model, self.model.default_loss()
        weights = dict(model.named_parameters())
        loss = loss_func(model(*self.seen[:3]), self.seen[3])
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        fast = {name: w - 1e-3 * g for (name, w), g in zip(weights.items(), grads, strict=True)}
        model.eval()
        unseen = loss_func(functional_call(model, fast, tuple(self.unseen[:3])), self.unseen[3])
        model.train()
        for p, g in zip(self.layers.parameters(), torch.autograd.grad(unseen, list(self.layers.parameters())), strict=True): p.grad = g
        for w, g in zip(weights.values(), grads, strict=True): w.grad = g.detach()
        self.opt.step()
        self.ft_opt.step()


def seconds(run, device: torch.device) -> float:
    if device.type == 'cuda': torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == 'cuda': torch.cuda.synchronize()
    return time.perf_counter() - start


def time_ratios(steps: int, rounds: int, size: int, device: torch.device) -> None:
    "Median over rounds in which every kind of step has its turn"
    lft = {f'LFTCallback(aux={aux})': by_learner(steps, size, device, [LFTCallback([Episodes(steps, size, device, 1)], aux=aux)])
           for aux in (False, True)}
    plain = by_learner(steps, size, device, [])
    kinds = {'plain step': lambda: fit(plain), 'hand-written step': ByHand(steps, size, device),
             **{name: lambda learn=learn: fit(learn) for name, learn in lft.items()}}
    for run in kinds.values(): run()
    rounds_ = [{name: seconds(run, device) / steps for name, run in kinds.items()} for _ in range(rounds)]
    for name in kinds:
        ratio = statistics.median(r[name] / r['hand-written step'] for r in rounds_)
        limit = f'  limit {TIME_LIMIT}' if 'aux=False' in name else ''
        print(f'{name:24} {statistics.median(r[name] for r in rounds_):8.3f} s/step  {ratio:5.2f}× the hand-written{limit}')


def peak_memory(kind: str, size: int, device: torch.device) -> float:
    "Peak memory in MB of three steps, what the imports take not counted"
    before = _resident()
    cbs = [] if kind == 'plain' else [LFTCallback([Episodes(3, size, device, 1)], aux=kind == 'lft+aux')]
    fit(by_learner(3, size, device, cbs))
    if device.type == 'cuda': return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before


def _resident() -> float:
    with open('/proc/self/statm') as f: return int(f.read().split()[1]) * resource.getpagesize() / 2**20


def memory_ratios(size: int, device: torch.device) -> None:
    command = [sys.executable, '-m', 'benchmarks.lft', '--size', str(size), '--device', device.type, '--peak']
    peaks = {kind: float(subprocess.run([*command, kind], check=True, capture_output=True, text=True).stdout.split()[-1])
             for kind in ('plain', 'lft', 'lft+aux')}
    for kind, peak in peaks.items(): print(f'{kind:24} {peak:8.0f} MB      {peak / peaks["plain"]:5.2f}× the plain step  limit {MEMORY_LIMIT}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', type=int, default=84)
    parser.add_argument('--steps', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--peak', choices=('plain', 'lft', 'lft+aux'), help='only print the peak memory of one kind of step')
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.peak: print(peak_memory(args.peak, args.size, device))
    else:
        print(f'RelationNet, ResNet10, {args.size} px, {N_WAY}-way {N_SHOT}-shot, {N_QUERY} queries, {device.type}')
        time_ratios(args.steps, args.rounds, args.size, device)
        memory_ratios(args.size, device)


if __name__ == '__main__': main()
