"""What explanations cost, as ratios: against a plain pass of the same network, against zennit and against captum.

    python -m benchmarks.explain [--threads 1 2] [--rounds 7] [--size 84]

Random weights and inputs. Ratios are medians over rounds in which all competitors take turns.
"""
from __future__ import annotations

from typing import Any

import torch
import zennit.layer
from captum.attr import LRP as CaptumLRP
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, IdentityRule
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, Norm, Pass, ZPlus
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

from benchmarks.noise import N_QUERY, N_WAY, noise_episode
from benchmarks.options import SIZE, options
from benchmarks.timing import note, paired, report
from fsc_fastai.encode import create_encoder
from fsc_fastai.encode.encoder import Encoder
from fsc_fastai.explain import LRP, explain_images, relevance_start, relevance_weights
from fsc_fastai.explain.lrp import scores_and_trace
from fsc_fastai.methods import CrossAttentionNet, GNNNet, ProtoNet, RelationNet
from fsc_fastai.methods.base import FewShotModel
from fsc_fastai.methods.pairs import Pairs


def zennit_composite() -> LayerMapComposite:
    "The published rules in zennit"
    return LayerMapComposite([(Activation, Pass()), (BatchNorm, Pass()), (AvgPool, Norm(stabilizer=1e-6)),
                              (zennit.layer.Sum, Norm(stabilizer=1e-3)), (Convolution, ZPlus(zero_params='bias')),
                              (Linear, Epsilon(epsilon=1e-3, zero_params='bias'))])


def zennit_relevance(net: nn.Module, x: Tensor, R: Tensor) -> Tensor:
    "Relevance of `x` by zennit"
    with zennit_composite().context(net) as hooked:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(hooked(x), x, R)[0]


def captum_relevance(net: nn.Module, x: Tensor) -> Tensor:
    "Relevance of `x` by captum, for the scores themselves: it knows no other start"
    for m in net.modules():
        if isinstance(m, nn.Conv2d): m.rule = Alpha1_Beta0_Rule()
        elif isinstance(m, (nn.Linear, nn.Flatten)): m.rule = EpsilonRule(1e-3)
        elif isinstance(m, nn.BatchNorm2d): m.rule = IdentityRule()
    return CaptumLRP(net).attribute(x, target=0)


def plain_head(model: RelationNet) -> nn.Sequential:
    "The relation module as modules in a row, for libraries that hook modules"
    r = model.relation
    def block(b: nn.Module) -> list[nn.Module]: return [b.conv, b.norm, nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
    return nn.Sequential(*block(r.layer1), *block(r.layer2), nn.Flatten(), r.fc1, nn.ReLU(), r.fc2)


def relation_head(device: str, rounds: int, size: int) -> None:
    "Time the relevance pass of the relation module on 400 pairs of maps `(2·512, 3, 3)`"
    model = RelationNet(Encoder(nn.ReLU(), 3, 512)).to(device).eval()
    maps = [torch.rand(n, 512, 3, 3, device=device) for n in (N_WAY, N_WAY * N_QUERY)]
    pairs = Pairs(*maps, encoded=True)
    dense, head, lrp, engine = pairs.features.detach(), plain_head(model), LRP(), LRP(engine=True)
    with torch.no_grad(): traced = scores_and_trace(model, pairs)
    R = relevance_start(traced[0]).view(-1, 1)
    flat = dense.flatten(0, 1)
    def naive() -> Tensor:
        with torch.no_grad(): return model.classify(dense)
    report('Relation module, 400 pairs: relevance pass by one naive forward pass', paired({
        'naive forward': naive,
        'ours, on the trace of the first pass': lambda: lrp(model, pairs, traced=traced),
        'ours, engine on dense pairs': lambda: engine(model, pairs),
        'zennit': lambda: zennit_relevance(head, flat, R),
        'captum': lambda: captum_relevance(head, flat),
    }, rounds), {'ours, on the trace of the first pass': 1.4})


def step(model: FewShotModel, batch: tuple, explainer: LRP | None = None, xi: float = 1., lam: float = 1.) -> None:
    "One training step without the optimizer: forward, explanation if any, backward"
    *xb, y = batch
    loss_func = model.default_loss()
    f = model.encode(torch.cat([xb[0], xb[2]]))
    f_p = model.process(f[:len(xb[0])], xb[1], f[len(xb[0]):])
    if explainer is None: loss = loss_func(model.training_output(f_p), y)
    else:
        plain = model.training_output(f_p) if isinstance(model, CrossAttentionNet) else None
        traced = scores_and_trace(model, f_p)
        w = relevance_weights(explainer(model, f_p, traced=traced))
        guided = model.training_output(w * f_p)
        if plain is not None and isinstance(plain, tuple): guided = (guided[0], *plain[1:])
        loss = lam * loss_func(guided, y)
        if xi: loss = loss + xi * loss_func(traced[0] if plain is None else plain, y)
    loss.backward()
    model.zero_grad()


class NaiveRelationNet(RelationNet):
    "The relation network as published code runs it: every pair is materialised"
    def __init__(self, encoder: Encoder):
        super().__init__(encoder)
        for block in (self.relation.layer1, self.relation.layer2): block.conv.__class__ = nn.Conv2d

    def process(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Tensor:
        return super().process(f_support, support_y, f_query).features


def relation_step(device: str, rounds: int, size: int) -> None:
    "Time a training step of a RelationNet: 5-way 5-shot, 16 queries a class"
    encoder = create_encoder('resnet10', img_size=size)
    models = {cls: cls(encoder).to(device).train() for cls in (NaiveRelationNet, RelationNet)}
    batch, lrp = tuple(noise_episode(size, device)), LRP()
    report('RelationNet on ResNet10, training step', paired({
        'naive plain step': lambda: step(models[NaiveRelationNet], batch),
        'our plain step': lambda: step(models[RelationNet], batch),
        'our explanation-guided step': lambda: step(models[RelationNet], batch, lrp),
    }, rounds), {'our plain step': .6, 'our explanation-guided step': 1.15})


def graph_head(device: str, rounds: int, size: int) -> None:
    "Time the relevance pass of the graph network against forward and backward pass of its head"
    model = GNNNet(Encoder(nn.Identity(), 3, 512)).to(device).train()
    support, y, query, query_y = noise_episode(3, device, channels=512)
    f_p = model.process(support, y, query)
    f_p.features = f_p.features.detach().requires_grad_()
    traced, lrp, loss_func = scores_and_trace(model, f_p), LRP(), model.default_loss()
    report('GNNNet: relevance pass by forward and backward pass of its head', paired({
        'head, forward and backward': lambda: loss_func(model.classify(f_p), query_y).backward(),
        'our relevance pass': lambda: lrp(model, f_p, traced=traced),
    }, rounds), {'our relevance pass': .1 if device == 'cuda' else .05})


def attention_step(device: str, rounds: int, size: int) -> None:
    "Time a training step of the cross attention network"
    model = CrossAttentionNet(create_encoder('resnet12', img_size=size), n_classes=64).to(device).train()
    batch, lrp = tuple(noise_episode(size, device)), LRP()
    report('CrossAttentionNet on ResNet12, training step', paired({
        'plain step': lambda: step(model, batch),
        'our explanation-guided step': lambda: step(model, batch, lrp, 0.),
    }, rounds), {'our explanation-guided step': 1.3})


class SummedBlock(nn.Module):
    "A basic block whose residual sum is a module, which zennit needs"
    def __init__(self, block: BasicBlock):
        super().__init__()
        self.main = nn.Sequential(block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2)
        self.shortcut = block.downsample if block.downsample is not None else nn.Identity()
        self.sum, self.act = zennit.layer.Sum(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.sum(torch.stack([self.main(x), self.shortcut(x)], -1)))


def encoder_pixels(device: str, rounds: int, size: int) -> None:
    "Time the relevance pass of ResNet10 from the features of 21 images to their pixels"
    encoder = create_encoder('resnet10', img_size=size).to(device).eval()
    body = encoder.body
    edited = nn.Sequential(body.conv1, body.bn1, nn.ReLU(), body.maxpool,
                           *[SummedBlock(b) for layer in (body.layer1, body.layer2, body.layer3, body.layer4) for b in layer])
    x = torch.randn(21, 3, size, size, device=device)
    with torch.no_grad(): R = encoder(x)
    lrp = LRP()
    report('ResNet10, 21 images, from the features to the pixels', paired({
        'zennit, modules edited': lambda: zennit_relevance(edited, x, R),
        'ours': lambda: lrp.relevance(encoder, x, R),
        'forward': lambda: encoder(x),
    }, rounds), {'ours': 1 / 1.8})


def explained_classes(device: str, rounds: int, size: int) -> None:
    "Time what a heatmap of one class costs, with the default rules and the published ones, against a forward pass of the episode"
    (support_x, y, query_x, _), n_query = noise_episode(size, device), N_WAY
    model = ProtoNet(create_encoder('resnet10', img_size=size)).to(device).eval()
    y, query_x = y.as_subclass(Tensor), query_x[:n_query]
    one = torch.zeros(n_query, 1, dtype=torch.long, device=device)
    def explain(explainer: Any = None, classes: Tensor | None = None) -> object:
        return explain_images(model, support_x, y, query_x, explainer, support=False, sum_channels=True, classes=classes)
    def forward() -> Tensor:
        with torch.no_grad(): return model(support_x, y, query_x)
    report(f'ResNet10 at {size} px, 5 queries beside 25 examples, from images to pixels', paired({
        'forward pass of the episode': forward,
        'explanation of a class, of all five': explain,
        'explanation of one class': lambda: explain(classes=one),
        'a class as published, of all five': lambda: explain(LRP.published()),
        'one class as published': lambda: explain(LRP.published(), one),
    }, rounds, dict.fromkeys(['explanation of a class, of all five', 'a class as published, of all five'], N_WAY)), {
        'explanation of a class, of all five': 4., 'explanation of one class': 4., 'a class as published, of all five': 4.,
        'one class as published': 4.})


def main() -> None:
    "Run every comparison"
    args = options(__doc__, rounds=7, size=SIZE, threads=dict(type=int, nargs='+', default=[1, 2], help='on a CPU'),
                   only=dict(nargs='+', default=[], help='names of comparisons, such as relation_head'))
    comparisons = (relation_head, relation_step, graph_head, attention_step, encoder_pixels, explained_classes)
    for device, threads in [('cuda', 1)] if torch.cuda.is_available() else [('cpu', n) for n in args.threads]:
        torch.set_num_threads(threads)
        note(f'\n=== {device}' + (f', {threads} thread(s)' if device == 'cpu' else f' ({torch.cuda.get_device_name()})'))
        for compare in comparisons:
            torch.manual_seed(0)
            if not args.only or compare.__name__ in args.only: compare(device, args.rounds, args.size)


if __name__ == '__main__': main()
