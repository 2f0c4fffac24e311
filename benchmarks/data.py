"""Episodes per second, beside easyfsl's TaskSampler with a DataLoader that decodes every image again; and the cost per step.

    python -m benchmarks.data [--sizes 84 224] [--rounds 5] [--device cpu]

660 JPEGs of 500×375, 5-way 5-shot 16 queries, no workers on either side, the same test transform (shown to give the same
pixels). Ours is measured with all images decoded already, as after the first epoch. With a GPU, both copy their batches to it.
`--keep-memory` makes glibc keep freed memory on both sides (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_). Without it the peer
gets the pages of large tensors from the system each time, while ours reuses the memory of earlier batches.
"""
from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.explain import step
from benchmarks.images import N_QUERY, N_SHOT, N_WAY, peer_loader, write_photos
from benchmarks.options import DEVICE, options
from benchmarks.timing import note, paired, report
from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.encode import create_encoder
from fsc_fastai.methods import RelationNet

LIMITS = {84: 1/50, 224: 1/20}
KEEP_MEMORY = {'MALLOC_MMAP_THRESHOLD_': str(2**30), 'MALLOC_TRIM_THRESHOLD_': str(2**32)}
STEP_LIMIT = .1


def forever(loader: Any) -> Iterator:
    while True: yield from loader


def moved(batches: Iterator, device: str) -> Iterator:
    for batch in batches: yield [o.to(device) if isinstance(o, torch.Tensor) else o for o in batch]


def take(batches: Iterator, n: int) -> None:
    for _ in range(n): next(batches)


def assert_same_pixels(dls: EpisodeDataLoaders, size: int) -> None:
    "Check that the peer's batch of our first episode has our pixels"
    ours, (support, _, query, *_) = dls.valid.episode(0), next(iter(peer_loader(dls.valid, size, 1, same=True)))
    for x, expected in ((ours.support_x, support), (ours.query_x, query)):
        torch.testing.assert_close(x.as_subclass(torch.Tensor).cpu(), expected, rtol=0, atol=1e-5)


def against_peer(dls: EpisodeDataLoaders, size: int, device: str, rounds: int) -> None:
    "Time the loading of test episodes when all images are decoded"
    ours, peer = forever(dls.valid), moved(forever(peer_loader(dls.valid, size, 1000)), device)
    names = 'easyfsl, decodes for every episode', 'ours, gathered from the cache'
    report(f'Loading an episode of {N_WAY}·({N_SHOT} + {N_QUERY}) images, test transform, {size} px, {device}', paired(
        {names[0]: lambda: take(peer, 2), names[1]: lambda: take(ours, 50)}, rounds, dict(zip(names, (2, 50), strict=True))),
        {names[1]: LIMITS[size]})


def against_step(dls: EpisodeDataLoaders, size: int, device: str, rounds: int) -> None:
    "Time the loading of augmented episodes beside the training step that takes them"
    model = RelationNet(create_encoder('resnet10', img_size=size), n_way=N_WAY).to(device).train()
    batch, ours = tuple(dls.train.one_batch()), forever(dls.train)
    steps = 1 if device == 'cpu' else 20  # of milliseconds each

    def train() -> None:
        for _ in range(steps): step(model, batch)
    names = 'training step, RelationNet on ResNet10', 'loading the episode, augmented'
    report(f'Loading an episode with the augmentations of training, {size} px, {device}', paired(
        {names[0]: train, names[1]: lambda: take(ours, 5 * steps)}, rounds, {names[0]: steps, names[1]: 5 * steps}),
        {names[1]: STEP_LIMIT})


def main() -> None:
    args = options(__doc__, device=DEVICE, sizes=dict(type=int, nargs='+', default=[84, 224]),
                   keep_memory=dict(action='store_true', help='have the C library keep freed memory'))
    if args.keep_memory and not KEEP_MEMORY.keys() <= os.environ.keys():  # it reads them when the process starts
        os.execve(sys.executable, [sys.executable, '-m', 'benchmarks.data', *sys.argv[1:]], os.environ | KEEP_MEMORY)
    torch.manual_seed(0)
    photos = write_photos(30, 22)
    try:
        for size in args.sizes:
            dls = EpisodeDataLoaders.from_folder(photos, size=size, n_way=N_WAY, n_shot=N_SHOT, n_query=N_QUERY, val_n_way=N_WAY,
                                                 n_episodes=1000, verify=False, device=torch.device(args.device))
            dls.build_cache(progress=False)
            note(f'{size} px: {dls.train.cache!r}')
            assert_same_pixels(dls, size)
            against_peer(dls, size, args.device, args.rounds)
            against_step(dls, size, args.device, args.rounds)
    finally: shutil.rmtree(photos)


if __name__ == '__main__': main()
