"Adaptations of the encoder give the numbers of their published implementations"
import json

import numpy as np
import pytest
import torch
from torch import nn

from fsc_fastai.adapt import augmentations as A
from fsc_fastai.adapt.base import trainable_copy
from fsc_fastai.adapt.episode_tune import pseudo_episode
from fsc_fastai.adapt.fine_tune import FineTune
from fsc_fastai.adapt.pmf import PMF
from fsc_fastai.adapt.tsa import TSA, AlignedProtoNet, attached
from fsc_fastai.encode.checkpoints import load_reference_state
from fsc_fastai.encode.encoder import create_encoder
from fsc_fastai.methods.base import class_means
from fsc_fastai.tensors import pool_vectors

from ..golden_files import fill_module, noise_module
from .test_golden import Recorded, cases


class Block(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        plain = stride == 1 and n_in == n_out
        self.downsample = None if plain else nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Tiny(nn.Module):
    "The small ResNet that the recordings were made with"
    out_shape = 32, 1, 1

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 5, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(4, 4, 1), Block(4, 4, 1))
        for i, n in enumerate((8, 16, 32), 2): setattr(self, f'layer{i}', nn.Sequential(Block(n // 2, n, 2)))

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def tiny(r):
    net = Tiny().to(r.dtype).eval()
    left = net.load_state_dict({k[2:]: r[k] for k in r.arrays if k.startswith('w.')}, strict=False)
    assert not left.unexpected_keys and all(k.endswith('num_batches_tracked') for k in left.missing_keys)
    return net


def resnet10(r):
    fill = fill_module()
    net = create_encoder('resnet10', img_size=int(r['input_size']))
    load_reference_state(net, {n: torch.from_numpy(fill.fill(n, s)) for n, s in json.loads(str(r.arrays['keys']))})
    images = lambda key: torch.from_numpy(np.stack([fill.image(int(i), int(r['input_size'])) for i in r.arrays[key]])).to(r.dtype)
    return net.to(r.dtype).eval(), images


def features(net, x):
    with torch.no_grad(): return pool_vectors(net(x))


# P>M>F

@cases('pmf_scores_*way_*shot')
def test_scores_of_pmf(path, dtype):
    r = Recorded('pmf_scores', path, dtype)
    for v in r.variants('scores'):
        r.same(PMF(**r.hp(v)).scores(class_means(r.support, r.y), r.query), f'{v}.scores')


def pmf(r, net, method, views, query, v, first_gradient=False):
    "Tune and compare what the file holds of a variant"
    losses = method.tune(net, r.support, r.y, views, method.lr)
    if r.has(f'{v}.losses'): r.same(losses, f'{v}.losses')
    support, found = features(net, r.support), features(net, query)
    for ours, key in ((support, 'support'), (found, 'query')):
        if r.has(f'{v}.{key}'): r.same(ours, f'{v}.{key}')
    r.same(method.scores(class_means(support, r.y), found), f'{v}.scores')


@cases('pmf_finetune_*way_*shot')
def test_pmf(path, dtype):
    r = Recorded('pmf_finetune', path, dtype)
    for v in ('none', 'one', 'few', 'large', 'tiny_lr'):
        net = trainable_copy(tiny(r))
        pmf(r, net, PMF(**r.hp(v)), r['augmented'][:r.hp(v)['steps']], r.query, v)
        for name, p in net.named_parameters():
            for what, ours in (('gradient', p.grad), ('after', p.detach())):
                if r.has(f'{v}.{what}.{name}'): r.same(ours, f'{v}.{what}.{name}', 1e-3 if dtype == torch.float32 else None)
    hp = r.hp('auto')
    method = PMF(steps=hp['steps'], search_steps=hp['search_steps'], lrs=tuple(hp['lr']), augment=False)
    lr, found = method.choose_lr(tiny(r), r.support, r.y)
    assert lr == pytest.approx(float(r['auto.chosen_lr']))
    if r.has('auto.accuracy') and found: assert [100 * o for o in found] == pytest.approx(r['auto.accuracy'].tolist(), abs=1e-3)
    net = trainable_copy(tiny(r))
    losses = method.tune(net, r.support, r.y, [r.support] * hp['steps'], lr)
    if lr: r.same(losses, 'auto.losses_end')
    r.same(method.scores(class_means(features(net, r.support), r.y), features(net, r.query)), 'auto.scores')


@cases('pmf_resnet10_*way_*shot')
def test_pmf_on_resnet10(path, dtype):
    r = Recorded('pmf_resnet10', path, dtype)
    net, images = resnet10(r)
    r.support, query = images('support_image'), images('query_image')
    r.same(features(net, r.support), 'before.support')
    for v in ('one', 'few'):
        if v == 'few' and dtype == torch.float32: continue  # the recording's own float32 errors are 3e-3
        steps = r.hp(v)['steps']
        pmf(r, trainable_copy(net), PMF(**r.hp(v)), [images('augmented_image')] * steps, query, v)


@cases('pmf_augment_*px')
def test_augmentations_of_pmf(path, dtype):
    r = Recorded('pmf_augment', path, dtype)
    x, places = r['x'], (r['shift_rows'], r['shift_columns'])
    for name in ('brightness', 'saturation', 'contrast'): r.same(getattr(A, name)(x, r[f'u_{name}']), name)
    r.same(A.translation(x, *places), 'translation')
    for start, key in ((x, 'all_unflipped'), (x.flip(-1), 'all_flipped')):
        for name in ('brightness', 'saturation', 'contrast'): start = getattr(A, name)(start, r[f'u_{name}'])
        r.same(A.translation(start, *places), key)


# TSA

TSA_VARIANTS = {'alpha': dict(align=False), 'beta': dict(adapters='no'), 'l2': dict(similarity='euclidean'),
                'vector': dict(vector=True), 'serial': dict(adapters='serial'),
                'serial_vector': dict(adapters='serial', vector=True)}


def tsa(r, net, v, support, query):
    method = TSA(**r.hp(v), **TSA_VARIANTS.get(v, {}))
    net = trainable_copy(net).requires_grad_(False)
    model = AlignedProtoNet(net, distance=method.similarity).to(support).eval()
    adapters, of_adapters = method.start(net), 1e-3 if r.dtype == torch.float32 else None
    losses = method.tune(model, adapters, support, r.y)
    r.same(losses, f'{v}.losses')
    with torch.no_grad():
        with attached(net, adapters): f_support, f_query = model.encode(support), model.encode(query)
        for key, f in (('support', f_support), ('query', f_query)):
            r.same(model.align(pool_vectors(f)), f'{v}.{key}', of_adapters)
        r.same(model.forward_head(f_support, r.y, f_query), f'{v}.scores')
        for name, adapter in adapters.items(): adapter.merge(net.get_submodule(name))
        torch.testing.assert_close(model(support, r.y, query), model.forward_head(f_support, r.y, f_query))
    return model, adapters


@cases('tsa_tiny_*way_*shot')
def test_tsa(path, dtype):
    r = Recorded('tsa_tiny', path, dtype)
    for v in r.variants('losses'):
        model, adapters = tsa(r, tiny(r), v, r.support, r.query)
        tol = 1e-3 if dtype == torch.float32 else None
        for name, a in adapters.items():
            if r.has(f'{v}.{name}.alpha'): r.same(a.alpha.detach(), f'{v}.{name}.alpha', tol)
            if r.has(f'{v}.{name}.alpha_bias'): r.same(a.bias.detach(), f'{v}.{name}.alpha_bias', tol)
        if r.has(f'{v}.beta'): r.same(model.align.weight.detach(), f'{v}.beta', tol)
        assert len(adapters) == (0 if v == 'beta' else 10)


@cases('tsa_resnet10_*way_*shot')
def test_tsa_on_resnet10(path, dtype):
    r = Recorded('tsa_resnet10', path, dtype)
    net, images = resnet10(r)
    tol = 5e-3 if dtype == torch.float32 else None
    for v in r.variants('losses'):
        model, adapters = tsa(r, net, v, images('support_image'), images('query_image'))
        beta = model.align.weight.detach()
        r.same(beta[:8, :8], f'{v}.beta_corner', tol)
        r.same(beta.diagonal(), f'{v}.beta_diagonal', tol)
        recorded = [k for k in r.arrays if k.startswith(f'{v}.') and k.endswith('.alpha_corner')]
        for key, a in zip(recorded, adapters.values(), strict=True): r.same(a.alpha.detach()[:6, :6, 0, 0], key, tol)


# Guo et al. 2020

class Conv(nn.Module):
    out_shape = 6, 1, 1

    def __init__(self, channels):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x): return self.bn(self.conv(x)).relu()


@cases('guo_finetune_*')
def test_fine_tuning_of_guo(path, dtype):
    r, noise = Recorded('guo_finetune', path, dtype), noise_module()
    way, shot, n_query, size, first, n, epochs, bs = r['meta'].tolist()
    episode = torch.from_numpy(np.stack([noise.picture(first + i, size) for i in range(way * (shot + n_query))])).to(dtype)
    episode = episode.unflatten(0, (way, shot + n_query))
    support, query = episode[:, :shot].flatten(0, 1), episode[:, shot:].flatten(0, 1)
    for v in ('tuned', 'frozen'):
        net, fc = Conv(n), nn.Linear(n, way)
        for prefix, m in (('', net), ('fc.', fc)):
            m.load_state_dict({k: torch.from_numpy(noise.weights(prefix + k, tuple(t.shape))) for k, t in m.state_dict().items()})
        method = FineTune(epochs=epochs, bs=bs, freeze=v == 'frozen')
        net, fc = net.to(dtype), fc.to(dtype)
        losses = method.tune(net, fc, support, torch.arange(way).repeat_interleave(shot), r['orders'])
        r.same(losses, f'{v}.losses')
        state = {**net.state_dict(), **{f'fc.{k}': t for k, t in fc.state_dict().items()}}
        for k in ('fc.weight', 'fc.bias', 'conv.weight', 'bn.weight'): r.same(state[k], f'{v}.{k}')
        for k in ('running_mean', 'running_var'): r.same(state[f'bn.{k}'], f'{v}.{k}')
        r.same(fc.eval()(features(net.eval(), query)).detach(), f'{v}.scores')


# ATA

@cases('ata_finetune_*')
def test_augmentations_and_layout_of_ata(path, dtype):
    r = Recorded('ata_finetune', path, dtype)
    number = lambda key: [int(c) for c in key.split('_')[1]]
    for key in r.arrays:
        if key.startswith('gamma_'): r.same(A.gamma(r['x'], float(key[6:])), key)
        if key.startswith('channels_'): r.same(A.channels(r['square'], number(key)), key)
        if key.startswith('rotate_'): r.same(A.rotate(r['square'], int(key[7:]) // 90), key)
        if key.startswith('layout_'):
            way, shot, n_pseudo = map(int, key.split('_')[1:])
            rows, shots = pseudo_episode(torch.arange(way).repeat_interleave(shot), n_pseudo)
            assert shots == [shot] * way
            r.same(torch.tensor([[i + view / 100 for i, view in row] for row in rows]), key)
        if key.startswith('all_'):
            power, places, flipped, turned = key.split('_')[1:]
            x = A.channels(A.gamma(r['square'], int(power) / 10), [int(c) for c in places])
            r.same(A.rotate(x.flip(1) if flipped == 'flip' else x, int(turned) // 90), key)
            r.same(A.gamma(r['square'], int(power) / 10).mean((1, 2)), 'erase_value')
    for axis, key in ((1, 'flip_first'), (2, 'flip_second')): r.same(r['square'].flip(axis), key)
