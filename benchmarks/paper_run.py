"""How long a run of the paper's size takes: a RelationNet trained with explanations, 400 epochs of 100 episodes at 224 px.

    python -m benchmarks.paper_run [--size 224] [--episodes 100] [--rounds 2]

ResNet10, 5-way 5-shot 16 queries, photographs with the augmentations of training, each epoch validated on as many episodes. The
time of an epoch is that of a fit of two epochs minus that of one. Images are in memory or on the card, and steps run one by one
or as one CUDA graph. On a CPU, which is only for trying this script, nothing is captured and images are in memory.
"""
from __future__ import annotations

import shutil
import statistics
from functools import partial
from pathlib import Path

import torch

from benchmarks.images import N_QUERY, N_SHOT, N_WAY, write_photos
from benchmarks.options import DEVICE, options
from benchmarks.timing import Timing, note, report, seconds
from fsc_fastai.callback.graphed_step import GraphedStep
from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.data.splitter import ClassSplitter
from fsc_fastai.learner.core import FSCLearner, fsc_learner

EPOCHS, EPISODES = 400, 100
PLACES = {'images in memory': (True, False), 'images on the card': (None, False), 'images on the card, graphed': (None, True)}


def learner(photos: Path, size: int, episodes: int, device: str, place: str) -> FSCLearner:
    "A learner for guided training whose images are decoded already"
    cache, graphed = PLACES[place]
    dls = EpisodeDataLoaders.from_folder(photos, size=size, n_way=N_WAY, n_shot=N_SHOT, n_query=N_QUERY, n_episodes=episodes,
                                         splitter=ClassSplitter(.5), cache=cache or device, device=device, verify=False)
    torch.manual_seed(0)
    cbs = [LRPGuidedCallback(), *([GraphedStep()] if graphed else [])]
    learn = fsc_learner(dls.build_cache(progress=False), 'resnet10', 'relation', cbs=cbs)
    learn.logger = lambda *args: None
    return learn


def main() -> None:
    args = options(__doc__, rounds=2, size=dict(type=int, default=224, help='side of the images'), device=DEVICE,
                   episodes=dict(type=int, default=EPISODES, help='of an epoch that is measured'))
    photos = write_photos(2 * N_WAY, N_SHOT + N_QUERY + 1)
    try: learners = {place: learner(photos, args.size, args.episodes, args.device, place) for place in PLACES}
    finally: shutil.rmtree(photos)
    epochs: dict[str, list[float]] = {place: [] for place in PLACES}
    for i in range(args.rounds + 1):  # one more warms up
        for place, learn in learners.items():
            with learn.no_bar(): one, two = (seconds(partial(learn.fit, n, 1e-3)) for n in (1, 2))
            if i: epochs[place].append((two - one) * EPISODES / args.episodes)
    took = {place: statistics.median(found) for place, found in epochs.items()}
    first = took[next(iter(took))]
    report(f'An epoch of {EPISODES} guided episodes of a RelationNet on ResNet10 at {args.size} px, with its validation',
           {place: Timing(t, t / first) for place, t in took.items()})
    hours = ', '.join(f'{place} {EPOCHS * t / 3600:.1f} hours' for place, t in took.items())
    note(f'A run of the paper\'s size, {EPOCHS} × {EPISODES} episodes, from {args.episodes} of them: {hours}')


if __name__ == '__main__': main()
