"""Accuracy over test episodes, against easyfsl's `evaluate` of the same model on the same episodes, and against the least work.

    python -m benchmarks.evaluate [--rounds 5] [--methods ProtoNet RelationNet] [--whole]

50 classes × 60 images of 84 px, ResNet10, 5-way 5-shot 16 queries, 2000 episodes. Each round measures one episode of the peer,
and of ours the encoding of one image, the preparation and the classification of one episode; times for 2000 episodes are
computed from these. `--whole` also runs all 2000 of ours once. The least work sends each image through the encoder once, and
each episode's maps through the classifier.
"""
from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from functools import partial

import torch
from easyfsl.methods import PrototypicalNetworks, RelationNetworks
from easyfsl.utils import evaluate as peer_evaluate
from torch import Tensor, nn

from benchmarks.explain import plain_head
from benchmarks.images import N_QUERY, N_SHOT, N_WAY, peer_loader
from benchmarks.options import DEVICE, SIZE, options
from benchmarks.timing import Timing, note, report, seconds
from fsc_fastai.data.episode_loader import EpisodicDL
from fsc_fastai.data.glyphs import untar_glyphs
from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.data.sampler import EpisodeSampler
from fsc_fastai.learner.core import FSCLearner, fsc_learner
from fsc_fastai.learner.episode_scores import encode_images, episode_scores
from fsc_fastai.methods import RelationNet

N_CLASSES, N_IMAGES, N_EPISODES = 50, 60, 2000
PEER_LIMIT, LEAST_LIMIT = 1/20, 1.5
SAMPLE, PEER_SAMPLE, ENCODED = 32, 2, 128 # Episodes and images that a round measures


class Maps(nn.Module):
    "The peer's backbone: our encoder, pooled to vectors where the method compares vectors"
    def __init__(self, model: nn.Module, pooled: bool):
        super().__init__()
        self.encoder, self.pooled = model.encoder, pooled

    def forward(self, x: Tensor) -> Tensor:
        maps = self.encoder(x)
        return maps.mean((2, 3)) if self.pooled else maps


def as_peer(learn: FSCLearner) -> nn.Module:
    "A model of easyfsl with the weights of the learner's"
    model = copy.deepcopy(learn.model).eval()
    if not isinstance(model, RelationNet): return PrototypicalNetworks(Maps(model, True)).eval()
    for block in (model.relation.layer1, model.relation.layer2): block.conv.__class__ = nn.Conv2d
    return RelationNetworks(Maps(model, False), feature_dimension=512, relation_module=plain_head(model)).eval()


@torch.no_grad()
def measure(learn: FSCLearner, dl: EpisodicDL, rounds: int) -> None:
    "Print the table of one method"
    model, name = learn.model.eval(), type(learn.model).__name__
    device, size = learn.dls.device, dl.img_shape[-1]
    peer, loader = as_peer(learn), peer_loader(dl, size, PEER_SAMPLE, same=True)
    sampler = EpisodeSampler(dl.labels, N_WAY, N_SHOT, N_QUERY)
    few = dl.images(idxs=range(ENCODED))
    ready = torch.cat([x.as_subclass(Tensor) for x, _ in few])
    maps = encode_images(model, dl.images())
    y = torch.arange(N_WAY, device=device).repeat_interleave(N_SHOT)
    head = model.head()
    compact = head.compact(maps)
    split = [(maps[e.support], maps[e.query]) for e in map(sampler.episode, range(8))]

    runs: dict[str, tuple[Callable[[], object], int]] = {
        'peer': (lambda: peer_evaluate(peer, loader, device=device, use_tqdm=False), PEER_SAMPLE),
        'encode': (lambda: encode_images(model, few), ENCODED),
        'prepare': (lambda: head.compact(maps), 1),
        'classify': (lambda: [s.argmax(1) for _, s, _ in episode_scores(model, compact, sampler, SAMPLE)], SAMPLE),
        'bare encoder': (lambda: [model.encode(x) for x in ready.split(64)], ENCODED),
        'bare classifier': (lambda: [model.forward_head(s, y, q) for s, q in split], len(split))}
    totals: list[list[float]] = []
    for i in range(rounds + 1):
        took = {k: seconds(run) / n for k, (run, n) in runs.items()}
        n_images = len(dl.items)
        whole = [took['peer'] * N_EPISODES, took['encode'] * n_images + took['prepare'] + took['classify'] * N_EPISODES,
                 took['bare encoder'] * n_images + took['bare classifier'] * N_EPISODES]
        if i: totals.append([*whole, took['encode'] * n_images])
    peers, ours, least, encode = (statistics.median(column) for column in zip(*totals, strict=True))
    ratio = statistics.median(t[1] / t[0] for t in totals)
    report(f'{name} on ResNet10, {N_EPISODES} test episodes of {size} px, against easyfsl', {
        'easyfsl.utils.evaluate, measured by the episode': Timing(peers, 1.), 'learn.evaluate': Timing(ours, ratio)},
        {'learn.evaluate': PEER_LIMIT})
    report(f'{name} on ResNet10, {N_EPISODES} test episodes of {size} px, against the least work', {
        'each image encoded once, plain classifier': Timing(least, 1.),
        'learn.evaluate': Timing(ours, statistics.median(t[1] / t[2] for t in totals))}, {'learn.evaluate': LEAST_LIMIT})
    note(f'{name}: {encode:.1f} s of the {ours:.1f} s encode {len(dl.items)} images, the rest classifies')


@torch.no_grad()
def same_accuracy(learn: FSCLearner, dl: EpisodicDL, n: int = 6) -> None:
    "Check that the peer finds the same accuracy on the same episodes"
    loader = peer_loader(dl, dl.img_shape[-1], n, same=True)
    theirs = peer_evaluate(as_peer(learn), loader, device=learn.dls.device, use_tqdm=False)
    ours = learn.evaluate({'same': dl}, n_episodes=n).accuracy.item()
    assert abs(ours - theirs) < .005, (ours, theirs)
    note(f'{type(learn.model).__name__}: accuracy on the same {n} episodes {100 * ours:.2f} % (easyfsl {100 * theirs:.2f} %)')


def main() -> None:
    args = options(__doc__, device=DEVICE, methods=dict(nargs='+', default=['ProtoNet', 'RelationNet']), size=SIZE,
                   images=dict(type=int, default=N_IMAGES, help='of a class'),
                   whole=dict(action='store_true', help=f'run all {N_EPISODES} episodes once'))
    folder = untar_glyphs(n_images=args.images, size=args.size, progress=False)
    dls = EpisodeDataLoaders.from_folder(folder, size=args.size, n_way=N_WAY, n_shot=N_SHOT, n_query=N_QUERY, verify=False,
                                         device=torch.device(args.device))
    classes = set(sorted(set(dls.train.labels))[:N_CLASSES])
    items = [item for item, y in zip(dls.train.items, dls.train.labels, strict=True) if y in classes]
    dl = dls.as_domains({'novel': dls.valid.new(dls.train.dataset.__class__(items, tfms=dls.train.dataset.tfms))})['novel']
    dl.build_cache(progress=False)
    for method in args.methods:
        torch.manual_seed(0)
        learn = fsc_learner(dls, 'resnet10', method)
        with learn.no_bar():
            same_accuracy(learn, dl)
            measure(learn, dl, args.rounds)
            if args.whole:
                took = seconds(partial(learn.evaluate, {'novel': dl}, n_episodes=N_EPISODES))
                note(f'{method}: learn.evaluate with all {N_EPISODES} episodes, once: {took:.1f} s')


if __name__ == '__main__': main()
