"""How costs grow: a plot in `docs/scaling.png`, and the exponent of each line.

    python -m benchmarks.scaling [--rounds 5]

Training step (forward, backward) of an explanation-guided RelationNet against n_way, n_shot and the side of the images; a step
of LFT on all of several pseudo-unseen domains; drawing episodes from up to 10,000 classes. One factor at a time, conv4, one
thread.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.explain import step
from benchmarks.noise import ByLearner, Episodes, noise_episode, relation_net
from benchmarks.options import options
from benchmarks.timing import note, paired
from fsc_fastai.callback.lft import LFTCallback
from fsc_fastai.data.sampler import EpisodeSampler
from fsc_fastai.encode import create_encoder
from fsc_fastai.explain import LRP
from fsc_fastai.methods import RelationNet

PLOT = Path(__file__).parents[1]/'docs'/'scaling.png'
SIDE, QUERIES = 32, 2
FEW = dict(n_shot=1, n_query=QUERIES)


def guided_step(n_way: int = 5, n_shot: int = 1, side: int = SIDE) -> Callable[[], None]:
    model = RelationNet(create_encoder('conv4', img_size=side), n_way=n_way).train()
    batch, lrp = tuple(noise_episode(side, n_way=n_way, n_shot=n_shot, n_query=QUERIES)), LRP()
    return lambda: step(model, batch, lrp)


def lft_step(n_domains: int) -> Callable[[], None]:
    cb = LFTCallback([Episodes(1, noise_episode(SIDE, **FEW)) for _ in range(n_domains)], every='all')
    return ByLearner(SIDE, 'cpu', 1, [cb], relation_net(SIDE, 'cpu', 'conv4'), **FEW)


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
    "The exponent of a power law through the points: the slope of the line in logarithms"
    return float(np.polyfit(np.log(at), np.log(took), 1)[0])


def plot(ax: Axes, name: str, at: Sequence[int], ms: np.ndarray, slope: float) -> None:
    "Draw one line on logarithmic axes, two decades high at least, so that what is flat looks flat"
    ax.loglog(at, ms, 'o-', markersize=3)
    middle, reach = np.sqrt(ms.min() * ms.max()), max(10., 1.3 * np.sqrt(ms.max() / ms.min()))
    ax.set(xlabel=name.replace(' (', '\n('), title=f'exponent {slope:.2f}', ylim=(middle / reach, middle * reach))
    ax.set_xticks(at, [f'{n:,}' for n in at], minor=False)
    ax.set_xticks([], minor=True)


def main() -> None:
    args = options(__doc__)
    torch.manual_seed(0)
    figure, axes = plt.subplots(1, len(LINES), figsize=(12, 2.8), layout='constrained')
    for ax, (name, (at, build)) in zip(axes, LINES.items(), strict=True):
        timings = paired({str(n): build(n) for n in at}, args.rounds)
        took = [timings[str(n)].seconds for n in at]
        slope = exponent(at, took)
        note(f'{name}: {", ".join(f"{n}: {1e3 * t:.1f} ms" for n, t in zip(at, took, strict=True))}; exponent {slope:.2f}, '
             f'{exponent(at[-2:], took[-2:]):.2f} at the end')
        plot(ax, name, at, 1e3 * np.array(took), slope)
    axes[0].set_ylabel('ms')
    figure.savefig(PLOT, dpi=80)
    note('![Cost against n_way, n_shot, image size, pseudo-unseen domains and classes](../docs/scaling.png)')


if __name__ == '__main__': main()
