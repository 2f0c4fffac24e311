"""Adaptations: methods on features against easyfsl's loop of the same method, adaptations of the encoder against a plain loop.

    python -m benchmarks.adapt [--rounds 3] [--archs conv4 resnet10] [--episodes 2000]

5-way 5-shot, 15 queries a class, 512 features: the peer fits and answers episode by episode, ours all of `--episodes` in one
call, which takes as many at once as a CPU's cache holds, with the same scores. The plain loop copies the model for each
episode and encodes what a step needs, as the published scripts do: 10 steps at 84 px. For PMF it is shown to find the same
scores; for FineTune that is not compared here.
"""
from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from easyfsl import methods as peers
from torch import Tensor, nn

from benchmarks.options import options
from benchmarks.timing import note, paired, report
from fsc_fastai.adapt import BDCSPN, PMF, PTMAP, TIM, FineTune, LaplacianShot, SimpleShot, TransductiveTuning, TunedPrototypes
from fsc_fastai.adapt.features import FeatureMethod
from fsc_fastai.methods import create_fsc_model
from fsc_fastai.methods.base import FewShotModel
from fsc_fastai.tensors import cosine

N_WAY, N_SHOT, N_QUERY, D, SIZE = 5, 5, 15, 512, 84
PEER_EPISODES, STEPS = 3, 10
FEATURES_LIMIT, IMAGES_LIMIT = 1/20, .6
UNIT = dict(feature_normalization=2)
PAIRS: dict[str, tuple[FeatureMethod, Callable[..., nn.Module]]] = {
    'SimpleShot': (SimpleShot(), lambda b: peers.SimpleShot(b, **UNIT)),
    'BD-CSPN': (BDCSPN(), lambda b: peers.BDCSPN(b, **UNIT)),
    'LaplacianShot': (LaplacianShot(treatment='l2'), lambda b: peers.LaplacianShot(b, **UNIT)),
    'TIM': (TIM(treatment='l2'), lambda b: peers.TIM(b, **UNIT)),
    'PT-MAP': (PTMAP(), lambda b: peers.PTMAP(b, **UNIT)),
    'Finetune': (TunedPrototypes(steps=50, treatment='l2'), lambda b: peers.Finetune(b, fine_tuning_steps=50, **UNIT)),
    'TransductiveFinetuning': (TransductiveTuning(treatment='l2'), lambda b: peers.TransductiveFinetuning(b, **UNIT))}
Y, QUERY_Y = (torch.arange(N_WAY).repeat_interleave(n) for n in (N_SHOT, N_QUERY))


def features(n: int) -> tuple[Tensor, Tensor]:
    "Support and queries of n episodes, not negative, as behind a ReLU"
    torch.manual_seed(0)
    centres = torch.rand(n, N_WAY, D)
    return tuple((centres[:, y] + .3 * torch.randn(n, len(y), D)).relu() for y in (Y, QUERY_Y))  # type: ignore[return-value]


def peer_scores(make: Callable[..., nn.Module], support: Tensor, query: Tensor) -> Tensor:
    "Episode by episode, each with a classifier of its own: tuned prototypes would stay"
    found = []
    for s, q in zip(support, query, strict=True):
        peer = make(nn.Identity())
        peer.process_support_set(s, Y)
        found.append(peer(q).detach())
    return torch.stack(found)


def on_features(rounds: int, episodes: int) -> None:
    "A table for each method"
    support, query = features(episodes)
    few = support[:PEER_EPISODES], query[:PEER_EPISODES]
    for name, (method, make) in PAIRS.items():
        same = (peer_scores(make, *few) - method.answer(few[0], Y, few[1])).abs().max() < 1e-3
        ours = f'ours, of {episodes} in a call'
        report(f'{name}, an episode of {D} features', paired(
            {'easyfsl': lambda make=make: peer_scores(make, *few),
             ours: lambda method=method: method.answer(support, Y, query)},
            rounds, {'easyfsl': PEER_EPISODES, ours: episodes}), {ours: FEATURES_LIMIT})
        note(f'{name}: scores are {"the same" if same else "not the same"} as easyfsl\'s')


def plain_pmf(model: FewShotModel, x: Tensor, query: Tensor, lr: float) -> Tensor:
    "Hu et al. 2022, as their script runs it, without augmentation"
    net = copy.deepcopy(model).eval()
    optimizer = torch.optim.Adam(net.encoder.parameters(), lr)
    encode = lambda x: net.encode(x).mean((2, 3))
    means = lambda f: torch.stack([f[k == Y].mean(0) for k in range(N_WAY)])
    score = lambda f, q: 10 * cosine(q[:, None], means(f)[None])
    for _ in range(STEPS):
        loss = F.cross_entropy(score(encode(x), encode(x)), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad(): return score(encode(x), encode(query))


def plain_fine_tune(model: FewShotModel, x: Tensor, query: Tensor, freeze: bool) -> Tensor:
    "Guo et al. 2020, as their script runs it"
    net = copy.deepcopy(model)
    fc = nn.Linear(D if net.encoder.out_shape[0] == D else net.encoder.out_shape[0], N_WAY)
    net.train(not freeze)
    optimizers = [torch.optim.SGD(fc.parameters(), .01, .9, .9, 1e-3)]
    if not freeze: optimizers.append(torch.optim.SGD(net.encoder.parameters(), .01))
    for i in range(STEPS):
        batch = torch.arange(4 * i, 4 * i + 4) % len(x)
        with torch.set_grad_enabled(not freeze): f = net.encode(x[batch]).mean((2, 3))
        loss = F.cross_entropy(fc(f), Y[batch])
        for o in optimizers: o.zero_grad()
        loss.backward()
        for o in optimizers: o.step()
    net.eval()
    with torch.no_grad(): return fc(net.encode(query).mean((2, 3)))


def on_images(arch: str, rounds: int) -> None:
    "Two tables for a backbone"
    torch.manual_seed(0)
    model = create_fsc_model('proto', arch, img_size=SIZE).eval()
    x, query = torch.randn(len(Y), 3, SIZE, SIZE), torch.randn(len(QUERY_Y), 3, SIZE, SIZE)
    def ours(method) -> Tensor:
        adapted = method(model, x, Y)
        with torch.no_grad(): return adapted(x, Y, query)
    pmf = PMF(lr=1e-4, steps=STEPS, augment=False)
    same = (ours(pmf) - plain_pmf(model, x, query, 1e-4)).abs().max() < 1e-2
    report(f'PMF on {arch}, {SIZE} px, {STEPS} steps, an episode', paired(
        {'plain loop': lambda: plain_pmf(model, x, query, 1e-4), 'PMF': lambda: ours(pmf)}, rounds), {'PMF': IMAGES_LIMIT})
    note(f'PMF on {arch}: scores are {"the same" if same else "not the same"} as the plain loop\'s')
    for freeze in (False, True):
        method = FineTune(steps=STEPS, freeze=freeze)
        report(f'FineTune on {arch}, {SIZE} px, {"frozen encoder, " if freeze else ""}{STEPS} steps, an episode', paired(
            {'plain loop': lambda freeze=freeze: plain_fine_tune(model, x, query, freeze), 'FineTune': lambda m=method: ours(m)},
            rounds), {'FineTune': IMAGES_LIMIT})


def main() -> None:
    args = options(__doc__, episodes=dict(type=int, default=2000),
                   archs=dict(nargs='*', default=['conv4', 'resnet10'], help='backbones'))
    on_features(args.rounds, args.episodes)
    for arch in args.archs: on_images(arch, args.rounds)


if __name__ == '__main__': main()
