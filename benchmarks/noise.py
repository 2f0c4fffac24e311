"Episodes of noise, learners that train on them, and the memory that this takes: what the benchmarks of training steps share"
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import Adam
from torch import Tensor

from fsc_fastai.data.episode import Episode, EpisodeLabel
from fsc_fastai.encode import create_encoder
from fsc_fastai.methods import RelationNet
from fsc_fastai.methods.base import FewShotModel

__all__ = ['noise_episode', 'Episodes', 'relation_net', 'ByLearner', 'peak_memory', 'peaks_of_processes', 'BACKBONES', 'LR',
           'N_WAY', 'N_SHOT', 'N_QUERY', 'N_CLASSES']

N_WAY, N_SHOT, N_QUERY, N_CLASSES = 5, 5, 16, 64
LR = 1e-3
BACKBONES = dict(RelationNet='resnet10', CrossAttentionNet='resnet12', GNNNet='resnet10')


def noise_episode(size: int, device: str = 'cpu', seed: int = 0, n_way: int = N_WAY, n_shot: int = N_SHOT,
                  n_query: int = N_QUERY, channels: int = 3) -> Episode:
    "An episode whose images, or feature maps, are noise"
    generator = torch.Generator().manual_seed(seed)
    def part(per_class: int) -> tuple[Tensor, EpisodeLabel]:
        x = torch.randn(n_way * per_class, channels, size, size, generator=generator).to(device)
        y = torch.arange(n_way, device=device).repeat_interleave(per_class)
        return x, EpisodeLabel(y, classes=tuple(range(n_way)))
    return Episode(*part(n_shot), *part(n_query))


class Episodes:
    "One episode again and again: what is measured is the step, not the loading"
    n_inp, vocab = 3, range(N_CLASSES)
    def __init__(self, n: int, episode: Episode): self.n, self.episode, self.dataset = n, episode, self
    def __len__(self) -> int: return self.n
    def __iter__(self) -> Iterator[Episode]: return iter([self.episode] * self.n)


def relation_net(size: int, device: str, arch: str = 'resnet10') -> RelationNet:
    "A RelationNet that always has the same random weights"
    torch.manual_seed(0)
    return RelationNet(create_encoder(arch, img_size=size), n_way=N_WAY).to(device)


class ByLearner:
    "Training steps by fastai, without validation"
    def __init__(self, size: int, device: str, steps: int, cbs: list, model: FewShotModel | None = None,
                 opt_func: Callable = Adam, **episode: int):
        noise = noise_episode(size, device, **episode)
        dls = DataLoaders(Episodes(steps, noise), Episodes(0, noise), device=torch.device(device))
        dls.n_inp, dls.vocab = 3, Episodes.vocab
        model = relation_net(size, device) if model is None else model
        self.learn = Learner(dls, model, loss_func=model.default_loss(), cbs=cbs, opt_func=opt_func)
        self.learn.logger = lambda *args: None

    def __call__(self) -> None:
        with self.learn.no_bar(): self.learn.fit(1, LR)


def peak_memory(build: Callable[[], Callable[[], None]], device: str) -> float:
    "The largest memory in MB of building and running something: allocated on a GPU, resident on a CPU (without the imports)"
    before = _resident('VmRSS')
    build()()
    return torch.cuda.max_memory_allocated() / 2**20 if device == 'cuda' else _resident('VmHWM') - before


def _resident(what: str) -> float:
    "MB of this process: VmRSS now, VmHWM at most (unlike getrusage's, it does not begin with the parent's)"
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 2**10


def peaks_of_processes(module: str, kinds: Iterable[str], size: int, device: str) -> dict[str, float]:
    "What `python -m benchmarks.MODULE --peak KIND` prints for each kind, in a process that returns freed memory at once"
    env = os.environ | {'MALLOC_MMAP_THRESHOLD_': '65536'}
    command = [sys.executable, '-m', f'benchmarks.{module}', '--size', str(size), '--device', device, '--peak']
    return {kind: float(subprocess.run([*command, kind], check=True, capture_output=True, text=True, env=env).stdout.split()[-1])
            for kind in kinds}
