"""Adaptations: methods on features against easyfsl's loop of the same method, adaptations of the encoder against a plain loop.

    python -m benchmarks.adapt [--rounds 3] [--archs conv4 resnet10] [--episodes 2000]

5-way 5-shot, 15 queries per class, 512 features. easyfsl fits and answers episode by episode; ours takes all `--episodes` in one
call, as many at a time as fit into the CPU's cache, and gives the same scores. The plain loop does 10 steps at 84 px with the
same random numbers: as the published scripts do, it copies the model for each episode and encodes the images anew for each step.
Memory is the most that torch's tensors take at a time, besides weights and images.
"""
from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from easyfsl import methods as peers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.options import DEVICE, options
from benchmarks.plain import plain_fine_tune, plain_pmf
from benchmarks.timing import note, paired, report
from fsc_fastai.adapt import BDCSPN, PMF, PTMAP, TIM, FineTune, LaplacianShot, SimpleShot, TransductiveTuning, TunedPrototypes
from fsc_fastai.adapt.features import FeatureMethod
from fsc_fastai.methods import create_fsc_model

N_WAY, N_SHOT, N_QUERY, D, SIZE = 5, 5, 15, 512, 84
PEER_EPISODES, STEPS, AT_PEAK = 3, 10, 100
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
PLACE = DEVICE['default']
Y, QUERY_Y = (torch.arange(N_WAY, device=PLACE).repeat_interleave(n) for n in (N_SHOT, N_QUERY))


def features(n: int) -> tuple[Tensor, Tensor]:
    "Support and queries of n episodes, not negative, as behind a ReLU"
    torch.manual_seed(0)
    centres = torch.rand(n, N_WAY, D)
    support, query = ((centres[:, y.cpu()] + .3 * torch.randn(n, len(y), D)).relu().to(PLACE) for y in (Y, QUERY_Y))
    return support, query


def peer_scores(make: Callable[..., nn.Module], support: Tensor, query: Tensor) -> Tensor:
    "Scores of the peer for each episode; a new classifier each time, because a tuned one keeps its prototypes"
    found = []
    for s, q in zip(support, query, strict=True):
        peer = make(nn.Identity())
        peer.process_support_set(s, Y)
        found.append(peer(q).detach())
    return torch.stack(found)


def peak(run: Callable[[], Tensor]) -> float:
    "The most megabytes of tensors that a run holds at one time"
    if PLACE == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found: run()
    events = [(e.start_ns(), e.nbytes()) for e in found.profiler.kineto_results.events() if e.name() == '[memory]']
    return max(accumulate((size for _, size in sorted(events)), initial=0)) / 2**20


def on_features(rounds: int, episodes: int) -> None:
    "Print a table for each method on features"
    support, query = features(episodes)
    few = support[:PEER_EPISODES], query[:PEER_EPISODES]
    for name, (method, make) in PAIRS.items():
        same = (peer_scores(make, *few) - method.answer(few[0], Y, few[1])).abs().max() < 1e-3
        ours = f'ours, of {episodes} in a call'
        report(f'{name}, an episode of {D} features', paired(
            {'easyfsl': lambda make=make: peer_scores(make, *few),
             ours: lambda method=method: method.answer(support, Y, query)},
            rounds, {'easyfsl': PEER_EPISODES, ours: episodes}), {ours: FEATURES_LIMIT})
        note(f'{name}: scores are {"the same" if same else "not the same"} as easyfsl\'s; '
             f'{peak(lambda method=method: method.answer(support[:AT_PEAK], Y, query[:AT_PEAK])):.1f} MB at the peak')


def on_images(arch: str, rounds: int) -> None:
    "Print four tables for a backbone"
    torch.manual_seed(0)
    model = create_fsc_model('proto', arch, img_size=SIZE).eval().to(PLACE)
    x, query = (torch.randn(len(y), 3, SIZE, SIZE).to(PLACE) for y in (Y, QUERY_Y))
    episode = model, x, Y, query, STEPS
    pmf = lambda augment: (PMF(lr=1e-4, steps=STEPS, augment=augment), lambda: plain_pmf(*episode, 1e-4, augment))
    fine_tune = lambda freeze: (FineTune(steps=STEPS, freeze=freeze), lambda: plain_fine_tune(*episode, freeze))
    pairs = {'PMF': pmf(True), 'PMF without augmentation': pmf(False), 'FineTune': fine_tune(False),
             'FineTune, frozen encoder': fine_tune(True)}
    for name, (method, plain) in pairs.items():
        def ours(method=method) -> Tensor:
            adapted = method(model, x, Y)
            with torch.no_grad(): return adapted(x, Y, query)
        theirs = plain()
        apart = (ours() - theirs).abs().max() / theirs.abs().max()
        report(f'{name} on {arch}, {SIZE} px, {STEPS} steps, an episode', paired({'plain loop': plain, 'ours': ours}, rounds),
               {'ours': IMAGES_LIMIT})
        note(f'{name} on {arch}: scores differ from the plain loop\'s by {apart:.1g} of the largest; '
             f'{peak(ours):.0f} MB at the peak')


def main() -> None:
    args = options(__doc__, episodes=dict(type=int, default=2000),
                   archs=dict(nargs='*', default=['conv4', 'resnet10'], help='backbones'))
    on_features(args.rounds, args.episodes)
    for arch in args.archs: on_images(arch, args.rounds)


if __name__ == '__main__': main()
