"""What a deployed classifier costs, as ratios to a plain forward pass of its encoder: one image, and 64 at once.

    python -m benchmarks.serve [--threads 1] [--arch resnet10] [--size 84] [--rounds 7]

Random weights, images of noise. Every method classifies images given as byte tensors, and images given as pictures in memory.
"""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image

from benchmarks.options import DEVICE, SIZE, options
from benchmarks.timing import paired, report
from fsc_fastai.deploy import FewShotClassifier, Preprocess
from fsc_fastai.methods import create_fsc_model

LIGHT, HEAVY = ('ProtoNet', 'MatchingNet', 'CrossAttentionNet'), ('GNNNet', 'RelationNet')
METHODS = LIGHT + HEAVY
N_WAY, N_SHOT, BATCH = 5, 5, 64
LIMIT, HEAVY_LIMIT = 1.10, 1.25

Runs = dict[str, Callable[[], object]]


def fitted(method: str, arch: str, size: int, device: str) -> FewShotClassifier:
    "A classifier with random weights and examples"
    known = FewShotClassifier(create_fsc_model(method, arch, n_way=N_WAY, img_size=size), Preprocess(size))
    return known.to(device).fit(pictures(N_WAY * N_SHOT, size), list(range(N_WAY)) * N_SHOT)


def pictures(n: int, size: int) -> list[Image.Image]:
    "Images of noise, of the size that the classifier resizes them to"
    rng, side = np.random.default_rng(0), int(1.15 * size)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(n)]


@torch.no_grad()
def encoder_pass(known: FewShotClassifier, x: torch.Tensor) -> torch.Tensor: return known.model.encode(x)


@torch.no_grad()
def tensor_scores(known: FewShotClassifier, pixels: torch.Tensor) -> torch.Tensor: return known.head(known.encode(pixels))


def measure(n: int, arch: str, size: int, device: str, rounds: int) -> None:
    "Print the table for `n` images at once"
    images = pictures(n, size)
    classifiers = {method: fitted(method, arch, size, device) for method in METHODS}
    first = classifiers[METHODS[0]]
    pixels = torch.stack([first.preprocess.pixels(im) for im in images]).to(device)
    runs: Runs = {f'{arch}, plain forward pass': partial(encoder_pass, first, first.preprocess.normalise(pixels))}
    runs |= {f'{name}, from bytes': partial(tensor_scores, known, pixels) for name, known in classifiers.items()}
    runs |= {f'{name}, from pictures': partial(known.predict_batch, images) for name, known in classifiers.items()}
    limits = {f'{name}, from bytes': LIMIT for name in LIGHT} if n == BATCH else None
    title = f'{n} image{"s" * (n > 1)} of {size} px, {N_WAY}-way {N_SHOT}-shot'
    report(title, paired(runs, rounds), limits)
    for name in HEAVY: compare_with_published(title, classifiers[name], pixels, rounds)


def compare_with_published(title: str, known: FewShotClassifier, pixels: torch.Tensor, rounds: int) -> None:
    "Time a method whose head is much of the work against its published pass: encoder and head on all queries at once"
    name, x = type(known.model).__name__, known.preprocess.normalise(pixels)
    f_support, member = known.support.features, known.support.member

    @torch.no_grad()
    def published() -> torch.Tensor: return known.model.forward_head(f_support, member, known.model.encode(x))

    runs: Runs = {f'{name} as published': published, f'{name} deployed': partial(tensor_scores, known, pixels)}
    limits = {f'{name} deployed': HEAVY_LIMIT} if len(pixels) == BATCH else None
    report(f'{title}: {name}', paired(runs, rounds), limits)


def main() -> None:
    args = options(__doc__, rounds=7, arch=dict(default='resnet10'), size=SIZE, device=DEVICE)
    torch.manual_seed(0)
    for n in (BATCH, 1): measure(n, args.arch, args.size, args.device, args.rounds)


if __name__ == '__main__': main()
