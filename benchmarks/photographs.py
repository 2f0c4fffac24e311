"""Adaptations on photographs: accuracy against milliseconds, behind one frozen encoder.

    python -m benchmarks.photographs --data PHOTOS --encoder WEIGHTS --out FOLDER [--arch resnet10] [--size 48]

PHOTOS has a folder for each domain: `mini_imagenet` with `base`, `val` and `novel`, the others with `novel` or class folders
only. Each image is encoded once; its features are kept in FOLDER. Cells are added to FOLDER/cells.json, so a run that was killed
goes on. All cells take the same episodes: the first 600, or as many as fit into `--seconds`, but at least 10. Differences to
ProtoNet are paired. `--domains` and `--methods` choose some. `--images` tests adaptations of the encoder instead of those on
features. Prints the table.
"""
from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.options import options
from fsc_fastai.adapt import PTMAP, TIM, get_adaptation
from fsc_fastai.data.episode_loader import EpisodicDL
from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.data.readers import read_images
from fsc_fastai.data.sampler import EpisodeSampler
from fsc_fastai.files import atomic_write
from fsc_fastai.learner.adapted import adapted_episodes
from fsc_fastai.learner.core import fsc_learner
from fsc_fastai.learner.episode_scores import encode_images, episode_scores
from fsc_fastai.learner.metrics import ci95, episode_accuracy
from fsc_fastai.methods import ProtoNet

SEEN, BASE, FIRST = 'mini_imagenet', 'base', 'ProtoNet'
OF_SEEN = 'val', 'novel'
LEAST = 10 # Episodes of a cell, however long they take
Adapt = Callable[[Any], Any]


def on_features(centre: Tensor, means: Tensor, covs: Tensor) -> dict[str, Any]:
    "The method of each row, with the settings that its paper or easyfsl publishes; None stands for the model as trained"
    made, cl2n = get_adaptation, dict(treatment='cl2', centre=centre)
    def named(*names: str) -> dict[str, Any]: return {name: made(name) for name in names}
    return {
        FIRST: None, 'SimpleShot (L2)': made('simple_shot'), 'SimpleShot (CL2N, base mean)': made('simple_shot', **cl2n),
        **named('support_centred', 'tip_adapter'), **{name: made(name, treatment='l2') for name in ('ridge', 'lda', 'logistic')},
        'logistic, not unit': made('logistic'),
        'distribution_calibration': made('distribution_calibration', base_means=means, base_covariances=covs),
        **named('tuned_prototypes', 'pa', 'bdcspn'),
        'laplacian_shot': made('laplacian_shot', treatment='l2'),
        'laplacian_shot (published, base mean)': made('laplacian_shot', lam=1., rectify='original', **cl2n),
        **named('tim'), 'tim (published)': TIM.published(), **named('tim_adm', 'pt_map'),
        'pt_map (published)': PTMAP.published(), **named('label_propagation', 'transductive_tuning', 'self_training')}


ON_IMAGES = {FIRST: None, 'finetune': get_adaptation('finetune'), 'finetune, frozen': get_adaptation('finetune', freeze=True),
             **{name: get_adaptation(name) for name in ('episode_tune', 'pmf', 'tsa')}}


def domains_of(dls: EpisodeDataLoaders, data: Path) -> dict[str, EpisodicDL]:
    "A loader for each domain: first `val` and `novel` of the seen one"
    others = {p.name: p for p in sorted(data.iterdir()) if p.is_dir() and p.name != SEEN}
    sources = {part: data/SEEN/part for part in OF_SEEN}
    sources |= {name: p/'novel' if (p/'novel').exists() else p for name, p in others.items()}
    return dls.as_domains(sources, verify=False, n_way=2, n_shot=1, n_query=1)


def features_of(model: ProtoNet, dl: EpisodicDL, file: Path) -> tuple[Tensor, Tensor]:
    "Pooled features and labels of all images, from a file if they are there"
    if not file.exists():
        x = encode_images(model, dl.images(bs=64)).mean((2, 3))
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as part, part.open('wb') as f: np.savez(f, x=x.numpy(), y=np.asarray(dl.labels))
    with np.load(file) as z: return torch.from_numpy(z['x']), torch.from_numpy(z['y'])


def statistics_of(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    "Mean `(n_classes, d)` and covariance `(n_classes, d, d)` of the features of each class"
    classes = [x[y == c] for c in y.unique()]
    return torch.stack([c.mean(0) for c in classes]), torch.stack([c.T.cov() for c in classes])


def first_episodes(accuracies: Iterator[float], n: int, budget: float) -> tuple[list[float], float]:
    "Accuracies of n episodes, or of as many as fit into the budget, and the seconds that one takes"
    found, start = [], time.process_time()
    for accuracy in accuracies:
        found.append(float(accuracy))
        if len(found) == n or len(found) >= LEAST and time.process_time() - start > budget: break
    return found, (time.process_time() - start) / len(found)


class Cells:
    "The cells of the table that are measured already, kept in a file"
    def __init__(self, file: Path):
        self.file, self.found = file, json.loads(file.read_text()) if file.exists() else {}

    def of(self, key: str, accuracies: Callable[[], Iterator[float]], n: int, budget: float) -> None:
        "Measure a cell, unless it is there with as many episodes or as much time spent on it"
        if key in self.found:
            known, seconds = self.found[key]
            if len(known) >= n or len(known) * seconds >= budget: return
        self.found[key] = first_episodes(accuracies(), n, budget)
        with atomic_write(self.file) as part: part.write_text(json.dumps(self.found))
        accuracies, seconds = self.found[key]
        print(f'{key}: {100 * np.mean(accuracies):.1f} % of {len(accuracies)}, {1e3 * seconds:.2f} ms', flush=True)

    def frame(self) -> pd.DataFrame:
        "A row for each cell, with its paired difference to ProtoNet in points"
        rows = []
        for key, (accuracies, seconds) in self.found.items():
            shot, domain, method = key.split('/')
            pairs = zip(accuracies, self.found[f'{shot}/{domain}/{FIRST}'][0])
            d = 100 * np.array([a - first for a, first in pairs])
            rows.append(dict(shot=int(shot), domain=domain, method=method, n=len(d), accuracy=100 * np.mean(accuracies),
                             difference=d.mean(), ci95=ci95(d), ms=1e3 * seconds))
        return pd.DataFrame(rows)


def unseen(cells: pd.DataFrame) -> pd.DataFrame:
    "Means over the unseen domains for each shot and method that has them all: accuracy, difference to ProtoNet, interval"
    rows = []
    cells = cells[~cells.domain.isin(OF_SEEN)]
    for (shot, method), of in cells.groupby(['shot', 'method'], sort=False):
        first = cells[(cells.shot == shot) & (cells.method == FIRST)]
        if len(of) < len(first): continue
        start = first.accuracy.mean()
        rows.append(dict(shot=shot, method=method, accuracy=start + of.difference.mean(),
                         difference=of.difference.mean(), ci95=np.sqrt((of.ci95**2).sum()) / len(of), ms=of.ms.median()))
    return pd.DataFrame(rows)


def markdown(cells: pd.DataFrame) -> str:
    "A table for each shot: accuracies on the seen domain and on unseen ones (ProtoNet's plus the difference), and milliseconds"
    lines, means = [], unseen(cells).set_index(['shot', 'method'])
    for shot, of_shot in cells.groupby('shot'):
        lines += ['', f'| {shot}-shot | val | novel | unseen | to ProtoNet | least | most | episodes | ms |', '|' + '---|' * 9]
        first = of_shot[of_shot.method == FIRST].set_index('domain')
        for method in means.loc[shot].index:
            row, mean = of_shot[of_shot.method == method].set_index('domain'), means.loc[shot, method]
            seen = [f'{first.accuracy[part] + row.difference[part]:.1f}' if part in row.index else '' for part in OF_SEEN]
            d = row.difference.drop(list(OF_SEEN), errors='ignore')
            apart = [f'{mean.difference:+.1f} ± {mean.ci95:.1f}', *(f'{d[i]:+.1f} {i}' for i in (d.idxmin(), d.idxmax()))]
            episodes = '–'.join(map(str, sorted({row.n.min(), row.n.max()})))
            ms = f'{mean.ms:.0f}' if mean.ms >= 10 else f'{mean.ms:.2g}'
            columns = [method, *seen, f'{mean.accuracy:.1f}', *(apart if method != FIRST else [''] * 3), episodes, ms]
            lines.append('| ' + ' | '.join(columns) + ' |')
    return '\n'.join(lines)


def main() -> None:
    path = dict(type=Path, required=True)
    args = options(__doc__, None, data=path, encoder=path, out=path,
                   arch=dict(default='resnet10'), size=dict(type=int, default=48),
                   shots=dict(type=int, nargs='*', default=[1, 5, 20]), episodes=dict(type=int, default=600),
                   seconds=dict(type=float, default=60., help='of a cell'), images=dict(action='store_true'),
                   domains=dict(nargs='*', help='these alone'), methods=dict(nargs='*', help='these alone'))
    one: dict[str, Any] = dict(verify=False, n_way=2, n_shot=1, n_query=1)
    dls = EpisodeDataLoaders.from_folder(args.data/SEEN, size=args.size, device='cpu', **one)
    learn = fsc_learner(dls, args.arch, ProtoNet, pretrained=args.encoder)
    learn.model.eval()
    loaders, images = domains_of(dls, args.data), read_images(args.data/SEEN/BASE)
    few = images.subset(range(0, len(images.files), 20))  # for their mean
    base = dls.as_domains({BASE: few, f'whole {BASE}': images}, **one)
    known = {name: features_of(learn.model, dl, args.out/'features'/f'{name}.npz') for name, dl in (loaders | base).items()}
    methods = ON_IMAGES if args.images else on_features(known[BASE][0].mean(0), *statistics_of(*known[f'whole {BASE}']))
    cells = Cells(args.out/('images.json' if args.images else 'cells.json'))
    for shot in args.shots:
        for name, dl in loaders.items():
            if args.domains and name not in args.domains: continue
            x, y = known[name]
            try: sampler = EpisodeSampler(y.numpy(), 5, shot, 15, drop_small=True, name=name)
            except ValueError as e:
                print(f'left out: {e}')
                continue
            for row, method in methods.items():
                if args.methods and row not in args.methods: continue
                def accuracies(method=method, x=x, dl=dl, sampler=sampler):
                    if args.images and method: return adapted_episodes(learn, dl, sampler, range(args.episodes), method)
                    model = method(learn.model) if method else learn.model
                    return (episode_accuracy(s, q) for _, s, q in episode_scores(model, x, sampler, args.episodes))
                cells.of(f'{shot}/{name}/{row}', accuracies, args.episodes, args.seconds)
    cells.frame().round(3).to_csv(cells.file.with_suffix('.csv'), index=False)
    print(markdown(cells.frame()))


if __name__ == '__main__': main()
