"""What a step of learned feature-wise transformation costs, in time and memory: RelationNet on ResNet10.

    python -m benchmarks.lft [--size 84] [--rounds 5] [--threads 1] [--steps 1]

Time is compared with the shortest hand-written step with `functional_call` (limit 1.15 x), peak memory with a plain training step
(limit 2.5 x). Memory is what is allocated on a GPU, or what is resident on a CPU, in a process of its own for each.
"""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.noise import LR, N_CLASSES, ByLearner, Episodes, noise_episode, peak_memory, peaks_of_processes, relation_net
from benchmarks.options import DEVICE, SIZE, options
from benchmarks.timing import note, paired, report
from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.callback.lft import LFTCallback
from fsc_fastai.encode.transformation import add_ft

TIME_LIMIT, MEMORY_LIMIT = 1.15, 2.5
KINDS = 'plain', 'lft', 'lft_aux'


class ByHand:
    "LFT written by hand in as few lines as it takes"
    def __init__(self, size: int, device: str, steps: int, aux: bool):
        self.model, self.steps, self.aux = relation_net(size, device).train(), steps, aux
        self.ft = nn.ModuleList(add_ft(self.model).values())
        self.head = nn.Linear(512, N_CLASSES).to(device)
        self.opt = torch.optim.Adam([*self.model.parameters(), *self.head.parameters()], LR)
        self.ft_opt = torch.optim.Adam(self.ft.parameters(), LR, weight_decay=1e-8)
        self.seen, self.unseen = (noise_episode(size, device, seed) for seed in (0, 1))
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
    return LFTCallback([Episodes(steps, noise_episode(size, device, seed=1))], aux=N_CLASSES if aux else False)


def ways(size: int, device: str, steps: int = 1) -> dict[str, Callable[[], list]]:
    "Functions that make the callbacks of each way to train"
    def lft() -> LFTCallback: return lft_callback(size, device, steps, False)
    return {'plain': list, 'guided': lambda: [LRPGuidedCallback()], 'LFT': lambda: [lft()],
            'LFT and guided': lambda: [lft(), LRPGuidedCallback()]}


def step_time(size: int, device: str, steps: int, rounds: int) -> None:
    "Time LFT's step by hand and ours, without and with the auxiliary loss, beside the plain step"
    for aux in (False, True):
        ours = f'LFTCallback(aux={aux})'
        timings = paired({'hand-written step': ByHand(size, device, steps, aux),
                          ours: ByLearner(size, device, steps, [lft_callback(size, device, steps, aux)]),
                          'plain step': ByLearner(size, device, steps, [])}, rounds)
        report(f'LFT step of RN/ResNet10 at {size} px, {steps} step(s), {device}', timings, {ours: TIME_LIMIT})


def steps_of(kind: str, size: int, device: str, steps: int = 3) -> ByLearner:
    "Training steps of one of `KINDS`"
    return ByLearner(size, device, steps, [] if kind == 'plain' else [lft_callback(size, device, steps, kind == 'lft_aux')])


def step_memory(size: int, device: str) -> None:
    "Peak memory of each kind of step, measured in a process of its own"
    peaks = peaks_of_processes('lft', KINDS, size, device)
    note(f'\nPeak memory of RN/ResNet10 at {size} px, {device}')
    for kind, peak in peaks.items():
        ratio = peak / peaks['plain']
        verdict = '' if kind == 'plain' else f'   limit {MEMORY_LIMIT:g}: {"met" if ratio <= MEMORY_LIMIT else "MISSED"}'
        note(f'  {kind:<44}{peak:>9.0f} MB {ratio:>8.2f} x{verdict}')


def main() -> None:
    "Run both comparisons"
    args = options(__doc__, size=SIZE, device=DEVICE,
                   steps=dict(type=int, help='training steps a run; default: 1, on a GPU 20'),
                   peak=dict(choices=KINDS, help='only the peak memory of one kind of step'))
    if args.peak:
        print(peak_memory(partial(steps_of, args.peak, args.size, args.device), args.device))
        return
    step_memory(args.size, args.device)
    # a fit begins and ends with a few milliseconds of fastai's, which are nothing beside one step on a CPU only
    step_time(args.size, args.device, args.steps or (1 if args.device == 'cpu' else 20), args.rounds)


if __name__ == '__main__': main()
