"FLoR's norms equal the published ones, and are part of the encoder that is saved, explained and deployed"
import copy
import json
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.learner import load_learner
from torch import nn

from fsc_fastai.deploy import FewShotClassifier
from fsc_fastai.encode.checkpoints import load_reference_state
from fsc_fastai.encode.encoder import create_encoder
from fsc_fastai.encode.flor import FLoRNorm2d
from fsc_fastai.encode.transformation import residual_norms
from fsc_fastai.explain.engine import leak_report
from fsc_fastai.methods.registry import create_fsc_model

from ..golden_files import load, noise_module, noise_state, recorded, same
from ..learners import hue_learner, weights


@recorded('flor_norm_*.npz')
def test_norm(path, monkeypatch):
    arrays, weights = load(path)
    norm = FLoRNorm2d(nn.BatchNorm2d(arrays['x'].shape[1]), *arrays['beta'].tolist())
    assert not norm.load_state_dict(weights, strict=False).missing_keys
    same(norm.eval()(arrays['x']), arrays['test'], 1e-5)
    monkeypatch.setattr(FLoRNorm2d, 'draw', lambda self, x: arrays['weight'])
    x = arrays['x'].requires_grad_()
    y = norm.train()(x)
    y.backward(arrays['upstream'])
    same(y.detach(), arrays['train'], 1e-5)
    same(x.grad, arrays['grad_x'], 1e-5)
    for name, p in norm.named_parameters(): same(p.grad, arrays[f'g.{name}'], 1e-5)
    for name in ('BN.running_mean', 'BN.running_var'): same(norm.get_buffer(name), arrays[f'after.{name}'], 1e-5)


@recorded('flor_network_*.npz')
def test_network(path, monkeypatch):
    arrays, _ = load(path)
    with np.load(path) as z: keys, called = json.loads(str(z['keys'])), json.loads(str(z['norms']))
    n, size, first = len(arrays['y']), *arrays['meta'][1:].tolist()
    encoder = create_encoder('resnet10', img_size=size, flor=arrays['beta'].tolist())
    report = load_reference_state(encoder, noise_state(keys))
    assert not report.missing and not report.unexpected and len(report.loaded) == len(encoder.state_dict())
    images = torch.from_numpy(np.stack([noise_module().picture(first + i, size) for i in range(n)]))
    with torch.no_grad(): same(encoder.eval()(images), arrays['test_features'], 1e-4)

    assert len(called) == len(arrays['weights'])
    classifier = noise_state([('classifier.weight', (64, 512))])['classifier.weight']
    def step(**kwargs):
        "A copy after a training pass, as recorded"
        net, draws = copy.deepcopy(encoder).train(), iter(arrays['weights'])
        monkeypatch.setattr(FLoRNorm2d, 'draw', lambda self, x: next(draws))
        with other_side(net, **kwargs): features = net(images)
        assert next(draws, None) is None
        loss = F.cross_entropy(features.mean((2, 3)) @ classifier.T, arrays['y'])
        loss.backward()
        same(features.detach(), arrays['train_features'], 1e-4)
        same(loss.detach(), arrays['train_loss'], 1e-4)
        return net

    recorded = {kind: create_encoder('resnet10', img_size=size, flor=(1, 1)) for kind in ('g.', 'after.')}
    # they find their places as weights do
    found = {kind: load_reference_state(place, {k.removeprefix(kind): v for k, v in arrays.items() if k.startswith(kind)}).loaded
             for kind, place in recorded.items()}
    assert all(found.values())
    def is_near(net):
        for kind, tol in {'g.': 1e-3, 'after.': 1e-4}.items():
            for k in found[kind]:
                ours = net.get_parameter(k).grad if kind == 'g.' else net.get_buffer(k)
                theirs = recorded[kind].state_dict()[k]
                if (ours - theirs).abs().max() > tol*theirs.abs().max(): return False
        return True
    # where the input of a ReLU is within rounding of 0, either of its two derivatives may be the recorded one
    net, kinks = step(), kinks_of(encoder, images, arrays['weights'], monkeypatch)
    assert is_near(net) or any(is_near(step(relu=name, entry=i)) for name, i in kinks)


def kinks_of(encoder, images, weights, monkeypatch, rounding=3e-7):
    "Inputs of ReLUs that are within rounding of 0 in a training pass: name of the ReLU, number of the entry"
    net, draws, found = copy.deepcopy(encoder).train(), iter(weights), []
    monkeypatch.setattr(FLoRNorm2d, 'draw', lambda self, x: next(draws))
    def look(name, m, args):
        size = args[0].abs().flatten()
        found.extend((name, i) for i in (size < rounding*size.max()).nonzero()[:, 0].tolist())
    for name, m in net.named_modules():
        if isinstance(m, nn.ReLU): m.register_forward_pre_hook(partial(look, name))
    with torch.no_grad(): net(images)
    return found


@contextmanager
def other_side(net, relu=None, entry=None):
    "Inside, one input of a ReLU has the other sign"
    if relu is None: yield; return
    def flip(m, args):
        shift = torch.zeros_like(args[0])
        shift.view(-1)[entry] = -2*args[0].detach().view(-1)[entry]
        return args[0] + shift
    with net.get_submodule(relu).register_forward_pre_hook(flip): yield


def images(n=4, size=64): return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('arch', ['resnet10', 'conv4', 'resnet12', 'mobilenetv3_small_050', 'densenet121', 'regnetx_002'])
def test_almost_no_instance_norm_is_the_plain_net(arch):
    "For norms with activations of their own, too; and plain weights are those of the batch norms"
    plain = create_encoder(arch, img_size=64)
    mixed = create_encoder(arch, plain.state_dict(), img_size=64, flor=(1e-9, 1.)).eval()
    x = images()
    with torch.no_grad(): torch.testing.assert_close(mixed(x), plain.eval()(x), rtol=1e-4, atol=1e-4)
    again = create_encoder(arch, mixed.state_dict(), img_size=64, flor=(1., 1.))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in mixed.state_dict().items())
    assert residual_norms(mixed) == residual_norms(plain)


def test_draws_are_of_the_beta_distribution():
    torch.manual_seed(0)
    norm = FLoRNorm2d(nn.BatchNorm2d(2), .5, 1.5)
    w = norm.draw(torch.zeros(20000, 1))
    assert w.mean() == pytest.approx(.25, abs=.01) and w.var() == pytest.approx(.5*1.5/(4*3), abs=.01)
    near_ends = FLoRNorm2d(nn.BatchNorm2d(2)).draw(torch.zeros(20000, 1))
    assert near_ends.isfinite().all() and ((near_ends < .01) | (near_ends > .99)).float().mean() > .9


def test_what_can_not_be_mixed_is_refused():
    with pytest.raises(ValueError, match='a, b > 0: found a=0, b=1'): create_encoder('conv4', img_size=32, flor=(0, 1))
    with pytest.raises(ValueError, match='has no batch norm'): create_encoder('vit_tiny_patch16_224', img_size=32, flor=(1, 1))
    with pytest.raises(ValueError, match='cannot encode images of 32×32 px.*spatial element'):
        create_encoder('resnet10', img_size=32, flor=(1, 1))


@pytest.mark.parametrize('arch', ['conv4', 'own'])
def test_is_saved_exported_explained_and_deployed(tmp_path, arch):
    body = lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    learn = hue_learner(tmp_path/'hues', 'proto', create_encoder(arch if arch == 'conv4' else body(), img_size=20, flor=(1., 2.)),
                        dls_kwargs=dict(n_episodes=2))
    before = weights(learn)
    learn.fit(1)
    assert any('.IN.' in k and not torch.equal(v, before[k]) for k, v in weights(learn).items())
    again = create_fsc_model(**(learn.model.config | ({} if arch == 'conv4' else {'arch': body()})))
    again.load_state_dict(learn.model.state_dict())
    episode = learn.dls.valid.one_batch()[:3]
    answers = learn.model.eval()(*episode)
    assert torch.equal(again.eval()(*episode), answers)
    learn.export('flor.pkl')
    assert torch.equal(load_learner(tmp_path/'flor.pkl').model.eval()(*episode), answers)
    known = FewShotClassifier.from_learner(learn).fit(tmp_path/'hues'/'novel')
    files = sorted((tmp_path/'hues'/'novel'/'novel0').iterdir())[:3]
    loaded = FewShotClassifier.from_pretrained(known.save(tmp_path/'saved'), **({} if arch == 'conv4' else {'arch': body()}))
    assert np.array_equal(loaded.predict_proba(files), known.predict_proba(files))
    lost = leak_report(learn.model.encoder.eval(), episode[2])
    assert np.isfinite(lost['lost'].to_numpy(float)).all()
