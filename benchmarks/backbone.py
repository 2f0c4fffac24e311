"""Heads on the features of a backbone without training, on folders of photographs: accuracy, and calibration of probabilities.

    python -m benchmarks.backbone --data PHOTOS --weights FILE [--arch tf_efficientnet_lite0] [--episodes 50] [--cache FOLDER]

PHOTOS has a folder for each domain, which holds class folders, or `novel` with class folders. FILE is a state dict in timm's
order, with any names. Our heads and those of scikit-learn, adaptshot and vyntri (the latter two if they are installed) get the
same features. Ours and adaptshot calibrate their probabilities by the examples; scikit-learn and vyntri do not. Figures are
means over the domains; a calibration error is that of all queries of a domain. A line says what was left out, and why.
"""
from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from benchmarks.options import options
from benchmarks.timing import note
from fsc_fastai.adapt import LDAHead, LogisticHead, RidgeHead
from fsc_fastai.deploy import FewShotClassifier, Preprocess
from fsc_fastai.deploy.report import calibration_error
from fsc_fastai.deploy.support import Support
from fsc_fastai.methods import ProtoNet

N_WAY, N_QUERY, KEEP, COVERAGE = 5, 15, .9, .9
COLUMNS = ('accuracy', 'error', 'kept', 'auroc', 'coverage', 'set size', 'ms')


@dataclass(frozen=True)
class Vectors(Preprocess):
    "Preprocessing of vectors that are given in the place of images"
    def batches(self, items: Any, bs: int = 64) -> Iterator[torch.Tensor]:
        if len(items): yield torch.stack(list(items))

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor: return pixels


class Same(nn.Module):
    "An encoder that returns its input, which is encoded already"
    def __init__(self, d: int):
        super().__init__()
        self.num_features, self.out_shape = d, (d, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor: return x


@dataclass
class Answers:
    "What a method answered to all queries of a domain"
    right: list = field(default_factory=list)
    confidence: list = field(default_factory=list)
    more: dict = field(default_factory=lambda: defaultdict(list))

    def add(self, confidence: Any, right: Any, **more: Any) -> None:
        self.confidence += list(confidence)
        self.right += list(right)
        for k, v in more.items(): self.more[k].append(v)

    def row(self) -> dict[str, float]:
        return {'accuracy': 100 * np.mean(self.right), 'error': calibration_error(self.confidence, self.right),
                **{k: np.mean(v) for k, v in self.more.items()}}


def ours(method: Callable, x: torch.Tensor, support: np.ndarray, y: np.ndarray, query: np.ndarray, target: np.ndarray,
         strange: np.ndarray, into: Answers) -> None:
    "Measure one of our heads in a deployed classifier"
    maps = x[:, :, None, None]
    model = method(ProtoNet(Same(x.shape[1])))
    known = FewShotClassifier(model, Vectors(8, 8, mean=(0., 0., 0.), std=(1., 1., 1.)), keep=KEEP)
    known._take(Support(known.head.compact(maps[support]), tuple(y.tolist())))
    start = time.process_time()
    answers = known.predict_batch(maps[query])
    took = 1e3 * (time.process_time() - start) / len(query)
    found = known.report(maps[query], target, strangers=maps[strange], coverage=COVERAGE)
    held_out = {'kept': found.kept, 'coverage': found.coverage, 'set size': found.set_size} if len(y) > N_WAY else {}
    right = [o.nearest == t for o, t in zip(answers, target)]
    into.add([o.confidence for o in answers], right, ms=took, auroc=found.auroc, **held_out)


def of_scikit_learn(make: Callable, x: torch.Tensor, support: np.ndarray, y: np.ndarray, query: np.ndarray, target: np.ndarray,
                    strange: np.ndarray, into: Answers) -> None:
    "Measure a classifier with scikit-learn's methods on features of length 1"
    x = nn.functional.normalize(x.double(), dim=1).numpy()
    made = make().fit(x[support], y)
    start = time.process_time()
    p = made.predict_proba(x[query])
    took = 1e3 * (time.process_time() - start) / len(query)
    into.add(p.max(1), made.classes_[p.argmax(1)] == target, ms=took)


class Vyntri:
    "vyntri's projection and ridge classifier, fitted to features"
    def fit(self, x: np.ndarray, y: np.ndarray) -> Vyntri:
        import vyntri
        cfg = vyntri.Vyntri().config
        self.projection, self.ridge = vyntri.Vyntri()._fit_analytic(x, y, cfg, whitening=cfg.adaptation)
        self.classes_ = self.ridge.classes_
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return self.ridge.predict_proba(x if self.projection is None else self.projection.transform(x))


def adaptshot(x: torch.Tensor, support: np.ndarray, y: np.ndarray, query: np.ndarray, target: np.ndarray, strange: np.ndarray,
              into: Answers) -> None:
    "Measure adaptshot's learner, which looks up features where it would encode images"
    from adaptshot.config.settings import AdaptShotConfig
    from adaptshot.core.learner import FewShotLearner
    learner = FewShotLearner(AdaptShotConfig(n_way=N_WAY, k_shot=len(y) // N_WAY, conformal_alpha=1 - COVERAGE, verbose=False))
    vectors = x.numpy()
    learner._extract_embedding_checked = lambda image, source: vectors[image.info['row']]
    learner._validate_support_inputs = lambda image_paths, labels: None
    learner._load_rgb_image_from_path = _row
    learner._normalize_predict_image = _row
    learner.load_support_images([str(i) for i in support], [str(o) for o in y])
    start = time.process_time()
    found = [learner.predict(str(i)) for i in query]
    took = 1e3 * (time.process_time() - start) / len(query)
    names = [str(o) for o in target]
    sets = [[str(o) for o in f.conformal_set] for f in found]
    into.add([f.calibrated_confidence for f in found], [str(f.prediction) == t for f, t in zip(found, names)], ms=took,
             kept=np.mean([not f.uncertainty_flag for f in found]),
             coverage=np.mean([t in o for t, o in zip(names, sets)]), **{'set size': np.mean(list(map(len, sets)))})


def _row(path: str) -> Image.Image:
    im = Image.new('RGB', (8, 8))
    im.info['row'] = int(path)
    return im


METHODS: dict[str, Callable] = {
    'ProtoNet, euclidean': partial(ours, lambda m: m),
    'ProtoNet, cosine': partial(ours, lambda m: ProtoNet(m.encoder, distance='cosine')),
    'LDA': partial(ours, LDAHead(treatment='l2')), 'ridge': partial(ours, RidgeHead(treatment='l2')),
    'logistic': partial(ours, LogisticHead(treatment='l2')),
    'scikit-learn LogisticRegression': partial(of_scikit_learn, partial(LogisticRegression, max_iter=1000)),
    'scikit-learn LDA': partial(of_scikit_learn, partial(LinearDiscriminantAnalysis, solver='lsqr', shrinkage='auto')),
    'scikit-learn nearest neighbour': partial(of_scikit_learn, partial(KNeighborsClassifier, 1)),
    'adaptshot': adaptshot, 'vyntri': partial(of_scikit_learn, Vyntri)}
SLOW = {'vyntri': 10, 'adaptshot': 4, 'scikit-learn LDA': 10} # So many times fewer episodes


def encoder_of(arch: str, weights: Path) -> tuple[Callable, Preprocess]:
    "A function from image files to vectors, with the weights of a file in the order of their tensors; and its preprocessing"
    model = timm.create_model(arch, num_classes=0).eval()
    own, given = model.state_dict(), torch.load(weights, map_location='cpu', weights_only=True)
    for (name, a), b in zip(own.items(), given.values()):
        if a.shape != b.shape: raise SystemExit(f'{weights} is no checkpoint of {arch}: {name} has the shape {tuple(b.shape)}')
    model.load_state_dict(dict(zip(own, given.values())))
    cfg = timm.get_pretrained_cfg(arch)
    size = cfg.input_size[1]
    prepared = Preprocess(size, int(size / cfg.crop_pct), 'squish', tuple(cfg.mean), tuple(cfg.std))

    @torch.inference_mode()
    def encode(files: list[Path]) -> torch.Tensor:
        return torch.cat([model(prepared.normalise(o)) for o in prepared.batches(files, 16)])
    return encode, prepared


def images_of(folder: Path, n_classes: int, n_images: int) -> tuple[list[Path], np.ndarray]:
    "Files and labels of some classes, chosen by a fixed seed"
    rng = np.random.default_rng(0)
    folder = folder/'novel' if (folder/'novel').is_dir() else folder
    classes = sorted(o for o in folder.iterdir() if o.is_dir())
    files, labels = [], []
    for label, i in enumerate(sorted(rng.permutation(len(classes))[:n_classes])):
        of_class = sorted(classes[i].iterdir())
        chosen = [of_class[k] for k in sorted(rng.permutation(len(of_class))[:n_images])]
        files += chosen
        labels += [label] * len(chosen)
    return files, np.array(labels)


def features_of(
    folder: Path, cache: Path | None, n_classes: int, n_images: int, encode: Callable,
) -> tuple[torch.Tensor, np.ndarray]:
    "Vectors `(n, d)` and labels of a domain; from the cache, if it has them"
    file = cache/f'{folder.name}.npz' if cache else None
    if file is None or not file.exists():
        files, y = images_of(folder, n_classes, n_images)
        x = encode(files).numpy()
        if file: np.savez(file, x=x, y=y)
    else: x, y = (np.load(file)[k] for k in 'xy')
    return torch.from_numpy(x), y


def episodes(y: np.ndarray, shot: int, n: int) -> Iterator[tuple[np.ndarray, ...]]:
    "Yield for each episode the rows of examples, their labels, the rows of queries, their labels, and the rows of strangers"
    rng = np.random.default_rng(0)
    rows = [np.flatnonzero(y == c) for c in np.unique(y)]
    rows = [o for o in rows if len(o) >= shot + N_QUERY]
    for _ in range(n):
        classes = rng.permutation(len(rows))
        drawn = [rng.permutation(rows[c])[:shot + N_QUERY] for c in classes[:2 * N_WAY]]
        known, other = drawn[:N_WAY], drawn[N_WAY:]
        label = np.arange(N_WAY)
        yield (np.concatenate([o[:shot] for o in known]), label.repeat(shot), np.concatenate([o[shot:] for o in known]),
               label.repeat(N_QUERY), np.concatenate([o[shot:] for o in other]))


def measured(
    domains: dict[str, tuple[torch.Tensor, np.ndarray]], names: list[str], shot: int, n: int,
) -> dict[str, dict[str, Any]]:
    "Means over the domains and the largest calibration error of each method"
    rows: dict[str, list] = {}
    for name in names:
        try: rows[name] = [_of_domain(name, x, y, shot, max(1, n // SLOW.get(name, 1))) for x, y in domains.values()]
        except (ValueError, RuntimeError) as e: note(f'{name} was left out at {shot} shots: {e}')
    table = {name: {c: np.mean([o[c] for o in found]) for c in COLUMNS if c in found[0]} for name, found in rows.items()}
    for name, found in rows.items():
        table[name]['worst error'] = max(o['error'] for o in found)
        if 'kept' in found[0]: table[name]['kept from'], table[name]['to'] = (f([o['kept'] for o in found]) for f in (min, max))
    return table


def _of_domain(name: str, x: torch.Tensor, y: np.ndarray, shot: int, n: int) -> dict[str, float]:
    into = Answers()
    for episode in episodes(y, shot, n): METHODS[name](x, *episode, into)
    return into.row()


def table_text(table: dict[str, dict[str, Any]]) -> str:
    "The table of `measured` as Markdown"
    columns = [*COLUMNS[:2], 'worst error', 'kept', 'kept from', 'to', *COLUMNS[3:]]
    digits = {'accuracy': '.1f', 'set size': '.2f', 'ms': '.2f'}
    shown = lambda row, c: format(row[c], digits.get(c, '.3f')) if c in row else ''
    return '\n'.join(['| | ' + ' | '.join(columns) + ' |', '|---' * (len(columns) + 1) + '|',
                      *(f'| {name} | ' + ' | '.join(shown(row, c) for c in columns) + ' |' for name, row in table.items())])


def main() -> None:
    args = options(__doc__, rounds=None, data=dict(type=Path), weights=dict(type=Path), cache=dict(type=Path),
                   arch=dict(default='tf_efficientnet_lite0'), domains=dict(nargs='+'), episodes=dict(type=int, default=50),
                   classes=dict(type=int, default=15), images=dict(type=int, default=40),
                   shots=dict(type=int, nargs='+', default=[1, 5]))
    if args.data is None or not args.data.is_dir() or (args.weights is None and args.cache is None):
        note(f'backbone: NOTHING WAS MEASURED. It takes --data PHOTOS (found {args.data}), --weights FILE (found {args.weights})')
        return
    warnings.filterwarnings('ignore')
    for peer in ('adaptshot', 'vyntri'):
        if not find_spec(peer): note(f'{peer} was left out: it is not installed')
    names = [o for o in METHODS if o not in ('adaptshot', 'vyntri') or find_spec(o)]
    encode = encoder_of(args.arch, args.weights)[0] if args.weights else None
    if args.cache: args.cache.mkdir(parents=True, exist_ok=True)
    folders = sorted(o for o in args.data.iterdir() if o.is_dir() and (not args.domains or o.name in args.domains))
    domains = {o.name: features_of(o, args.cache, args.classes, args.images, encode) for o in folders}
    for shot in args.shots:
        title = f'{args.arch}, {N_WAY}-way {shot}-shot, {args.episodes} episodes of each of {len(domains)} domains'
        note(f'{title}: {", ".join(domains)}\n\n{table_text(measured(domains, names, shot, args.episodes))}')


if __name__ == '__main__': main()
