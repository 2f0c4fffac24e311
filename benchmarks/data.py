"""Episodes a second, against easyfsl's TaskSampler with a DataLoader that decodes each image anew; and what it costs a step.

    python -m benchmarks.data [--sizes 84 224] [--rounds 5]

660 JPEGs of 500×375, 5-way 5-shot 16 queries, no workers on either side, the same test transform (shown to give the same
pixels). Ours is measured with every image decoded already, as after the first epoch. `--keep-memory` has glibc keep freed
memory on both sides (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_): else the pages of large tensors come anew from the
system each time, which ours has less of, for it asks for large ones.
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
from benchmarks.options import options
from benchmarks.timing import note, paired, report
from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.models import RelationNet, create_encoder

LIMITS = {84: 1/50, 224: 1/20}
KEEP_MEMORY = {'MALLOC_MMAP_THRESHOLD_': str(2**30), 'MALLOC_TRIM_THRESHOLD_': str(2**32)}
STEP_LIMIT = .1


def forever(loader: Any) -> Iterator:
    while True: yield from loader


def take(batches: Iterator, n: int) -> None:
    for _ in range(n): next(batches)


def assert_same_pixels(dls: EpisodeDataLoaders, size: int) -> None:
    "The peer's batch of our first episode is ours"
    ours, (support, _, query, *_) = dls.valid.episode(0), next(iter(peer_loader(dls.valid, size, 1, same=True)))
    torch.testing.assert_close(ours.support_x.as_subclass(torch.Tensor), support, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.query_x.as_subclass(torch.Tensor), query, rtol=0, atol=1e-5)


def against_peer(dls: EpisodeDataLoaders, size: int, rounds: int) -> None:
    "Steady-state loading of test episodes"
    ours, peer = forever(dls.valid), forever(peer_loader(dls.valid, size, 1000))
    names = 'easyfsl, decodes for every episode', 'ours, gathered from the cache'
    report(f'Loading an episode of {N_WAY}·({N_SHOT} + {N_QUERY}) images, test transform, {size} px', paired(
        {names[0]: lambda: take(peer, 2), names[1]: lambda: take(ours, 50)}, rounds, dict(zip(names, (2, 50), strict=True))),
        {names[1]: LIMITS[size]})


def against_step(dls: EpisodeDataLoaders, size: int, rounds: int) -> None:
    "Loading with the augmentations of training, beside the step that it feeds"
    model = RelationNet(create_encoder('resnet10', img_size=size), n_way=N_WAY).train()
    batch, ours = dls.train.one_batch(), forever(dls.train)
    names = 'training step, RelationNet on ResNet10', 'loading the episode, augmented'
    report(f'Loading an episode with the augmentations of training, {size} px', paired(
        {names[0]: lambda: step(model, tuple(batch)), names[1]: lambda: take(ours, 5)}, rounds, {names[1]: 5}),
        {names[1]: STEP_LIMIT})


def main() -> None:
    args = options(__doc__, sizes=dict(type=int, nargs='+', default=[84, 224]),
                   keep_memory=dict(action='store_true', help='have the C library keep freed memory'))
    if args.keep_memory and not KEEP_MEMORY.keys() <= os.environ.keys():  # it reads them when the process starts
        os.execve(sys.executable, [sys.executable, '-m', 'benchmarks.data', *sys.argv[1:]], os.environ | KEEP_MEMORY)
    torch.manual_seed(0)
    photos = write_photos(30, 22)
    try:
        for size in args.sizes:
            dls = EpisodeDataLoaders.from_folder(photos, size=size, n_way=N_WAY, n_shot=N_SHOT, n_query=N_QUERY, val_n_way=N_WAY,
                                                 n_episodes=1000, verify=False, device='cpu').build_cache(progress=False)
            note(f'{size} px: {dls.train.cache!r}')
            assert_same_pixels(dls, size)
            against_peer(dls, size, args.rounds)
            against_step(dls, size, args.rounds)
    finally: shutil.rmtree(photos)


if __name__ == '__main__': main()
