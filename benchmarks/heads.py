"""Which head suits a pretrained backbone without training? Prints Markdown tables of all heads' accuracies on the same episodes.

    python -m benchmarks.heads --folders mini_imagenet/val --arch tf_efficientnet_lite0 --weights FILE --remap [--per-class 60]

The images are the user's: folders of class folders. Each is encoded once; `--keep FOLDER` keeps the features for another call.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.options import options
from fsc_fastai.adapt import SimpleShot
from fsc_fastai.data.names import named_paths
from fsc_fastai.data.readers import read_folder
from fsc_fastai.data.sampler import EpisodeSampler
from fsc_fastai.deploy import FewShotClassifier
from fsc_fastai.deploy.backbone import HEADS
from fsc_fastai.learner.metrics import ci95

N_WAY, N_QUERY = 5, 16
METHODS = {**HEADS, 'cosine': SimpleShot(treatment='un'), 'proto': SimpleShot(treatment='un', similarity='euclidean')}


@torch.no_grad()
def encoded(known: FewShotClassifier, folder: Path, per_class: int, kept: Path | None) -> tuple[Tensor, Tensor]:
    "Features `(n, d)` and labels of the first images of each class"
    if kept and kept.exists(): return torch.load(kept)
    images = read_folder(folder)
    classes = sorted(set(images.labels))
    chosen = [i for c in classes for i in [j for j, o in enumerate(images.labels) if o == c][:per_class]]
    batches = known.preprocess.batches([images.files[i] for i in chosen], 32)
    features = torch.cat([known.encode(o).flatten(1) for o in batches])
    labels = torch.tensor([classes.index(images.labels[i]) for i in chosen])
    if kept: torch.save((features, labels), kept)
    return features, labels


def accuracies(features: Tensor, labels: Tensor, shot: int, n_episodes: int) -> dict[str, np.ndarray]:
    "Accuracies in percent of each head, one for each episode"
    sampler = EpisodeSampler(labels.numpy(), N_WAY, shot, N_QUERY)
    episodes = [sampler.episode(k) for k in range(n_episodes)]
    support, query = (features[torch.tensor([e[i] for e in episodes])] for i in range(2))
    support_y, query_y = (torch.arange(N_WAY).repeat_interleave(n) for n in (shot, N_QUERY))
    member = torch.eye(N_WAY)[support_y]
    right = {}
    for name, method in METHODS.items():
        parts = zip(support.split(20), query.split(20), strict=True)
        scores = [method.fit(s, member.expand(len(s), -1, -1))(q) for s, q in parts]
        right[name] = 100 * (torch.cat(scores).argmax(-1) == query_y).double().mean(-1).numpy()
    return right


def main() -> None:
    args = options(__doc__, rounds=None, arch=dict(required=True), weights=dict(), remap=dict(action='store_true'),
                   per_class=dict(type=int, default=60), episodes=dict(type=int, default=600), keep=dict(type=Path),
                   folders=dict(nargs='+', required=True))
    known = FewShotClassifier.from_backbone(args.arch, args.weights, 'proto', remap=args.remap)
    print('| | shot | ' + ' | '.join(METHODS) + ' | ridge − proto |\n' + '|---' * (len(METHODS) + 3) + '|')
    for name, folder in named_paths(args.folders).items():
        found = encoded(known, folder, args.per_class, args.keep and args.keep/f'{name.replace("/", "_")}.pt')
        for shot in (1, 5):
            right = accuracies(*found, shot, args.episodes)
            columns = [f'{o.mean():.1f} ± {ci95(o):.1f}' for o in (*right.values(), right['ridge'] - right['proto'])]
            print(f'| {name} | {shot} | {" | ".join(columns)} |', flush=True)


if __name__ == '__main__': main()
