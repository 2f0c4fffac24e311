"""How costs grow: a plot in `docs/scaling.png`, and the exponent of each line.

    python -m benchmarks.scaling [--rounds 5]

Training step (forward, backward) of an explanation-guided RelationNet against n_way, n_shot and the side of the images; a step
of LFT on all of several pseudo-unseen domains; drawing episodes from up to 10,000 classes. One factor at a time, conv4, one
thread.
"""
from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from benchmarks.explain import step
from benchmarks.timing import note, paired
from fsc_fastai.callback.lft import LFTCallback
from fsc_fastai.data.episode import Episode, EpisodeLabel
from fsc_fastai.data.sampler import EpisodeSampler
from fsc_fastai.encode import create_encoder
from fsc_fastai.explain import LRP
from fsc_fastai.methods import RelationNet

PLOT = Path(__file__).parents[1]/'docs'/'scaling.png'
SIDE, QUERIES = 32, 2


def episode(n_way: int = 5, n_shot: int = 1, side: int = SIDE) -> Episode:
    "Noise, with two queries a class"
    def part(n: int) -> tuple[Tensor, EpisodeLabel]:
        y = torch.arange(n_way).repeat_interleave(n)
        return torch.rand(n_way * n, 3, side, side), EpisodeLabel(y, classes=tuple(range(n_way)))
    return Episode(*part(n_shot), *part(QUERIES))


def guided_step(n_way: int = 5, n_shot: int = 1, side: int = SIDE) -> Callable[[], None]:
    model = RelationNet(create_encoder('conv4', img_size=side), n_way=n_way).train()
    batch, lrp = tuple(episode(n_way, n_shot, side)), LRP()
    return lambda: step(model, batch, lrp)


class Episodes:
    "One episode again and again"
    n_inp, vocab = 3, range(200)
    def __init__(self, n: int): self.n, self.dataset, self.episode = n, self, episode()
    def __len__(self) -> int: return self.n
    def __iter__(self): return iter([self.episode] * self.n)


def lft_step(n_domains: int) -> Callable[[], None]:
    model = RelationNet(create_encoder('conv4', img_size=SIDE), n_way=5)
    dls = DataLoaders(Episodes(1), Episodes(0), device=torch.device('cpu'))
    dls.n_inp, dls.vocab = 3, Episodes.vocab
    cb = LFTCallback([Episodes(1) for _ in range(n_domains)], every='all')
    learn = Learner(dls, model, loss_func=model.default_loss(), cbs=cb)
    learn.logger = lambda *args: None
    def run() -> None:
        with learn.no_bar(): learn.fit(1, 1e-3)
    return run


def draws(n_classes: int, n: int = 100) -> Callable[[], None]:
    sampler = EpisodeSampler(np.arange(n_classes).repeat(21))
    def run() -> None:
        for k in range(n): sampler.episode(k)
    return run


LINES: dict[str, tuple[Sequence[int], Callable[[int], Callable[[], None]]]] = {
    'n_way (guided step)': ((5, 10, 20, 50, 100), lambda n: guided_step(n_way=n)),
    'n_shot (guided step)': ((1, 2, 5, 10, 20), lambda n: guided_step(n_shot=n)),
    'side of the images (guided step)': ((32, 64, 128, 224), lambda n: guided_step(side=n)),
    'pseudo-unseen domains (LFT step)': ((1, 2, 4, 8), lft_step),
    'classes of the dataset (100 draws)': ((20, 100, 1000, 10_000), draws)}


def exponent(at: Sequence[int], took: Sequence[float]) -> float:
    "Slope of the line in logarithms"
    return float(np.polyfit(np.log(at), np.log(took), 1)[0])


def plot(ax: Axes, name: str, at: Sequence[int], ms: np.ndarray, slope: float) -> None:
    "One line in logarithms, on a height of two decades at least, so that what is flat looks flat"
    ax.loglog(at, ms, 'o-', markersize=3)
    middle, reach = np.sqrt(ms.min() * ms.max()), max(10., 1.3 * np.sqrt(ms.max() / ms.min()))
    ax.set(xlabel=name.replace(' (', '\n('), title=f'exponent {slope:.2f}', ylim=(middle / reach, middle * reach))
    ax.set_xticks(at, [f'{n:,}' for n in at], minor=False)
    ax.set_xticks([], minor=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    rounds = parser.parse_args().rounds
    warnings.filterwarnings('ignore', category=FutureWarning)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figure, axes = plt.subplots(1, len(LINES), figsize=(12, 2.8), layout='constrained')
    for ax, (name, (at, build)) in zip(axes, LINES.items(), strict=True):
        timings = paired({str(n): build(n) for n in at}, rounds)
        took = [timings[str(n)].seconds for n in at]
        slope = exponent(at, took)
        note(f'{name}: {", ".join(f"{n}: {1e3 * t:.1f} ms" for n, t in zip(at, took, strict=True))}; exponent {slope:.2f}, '
             f'{exponent(at[-2:], took[-2:]):.2f} at the end')
        plot(ax, name, at, 1e3 * np.array(took), slope)
    axes[0].set_ylabel('ms')
    figure.savefig(PLOT, dpi=80)
    note('![Cost against n_way, n_shot, image size, pseudo-unseen domains and classes](../docs/scaling.png)')


if __name__ == '__main__': main()
