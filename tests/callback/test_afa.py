"AFA's operations and steps equal the published ones; what it does to γ, β and to the encoder, epoch by epoch"
import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

from fsc_fastai.callback.afa import EPOCHS, LEARNED, REVERSED, AFACallback
from fsc_fastai.callback.lft import LFTCallback
from fsc_fastai.callback.parts.two_streams import domain_classifier, domain_loss, gram_loss, strength
from fsc_fastai.callback.resume import ResumeFit
from fsc_fastai.encode.transformation import FeatureWiseTransformation

from ..golden_files import load, noise_module, recorded, same
from ..learners import hue_learner, hue_loaders, weights
from .episodes import CutOff
from .golden import MAPS, OPS, Step


@recorded('afa_ops_*.npz')
@pytest.mark.parametrize('epoch', [100, 300])
def test_one_layer(path, epoch, monkeypatch):
    arrays, state = load(path)
    norm = nn.BatchNorm2d(arrays['x'].shape[1])
    norm.load_state_dict({k: v for k, v in state.items() if k in norm.state_dict()}, strict=False)
    layer = FeatureWiseTransformation(norm.num_features)
    layer.load_state_dict({k: state[k].flatten() for k in ('gamma', 'beta')})
    noise = {id(layer.gamma): arrays['noise_gamma'].flatten(), id(layer.beta): arrays['noise_beta'].flatten()}
    monkeypatch.setattr(torch, 'randn_like', lambda p: noise[id(p)])
    if epoch >= REVERSED:
        for p in layer.parameters(): p.register_hook(torch.neg)
    x, hook = arrays['x'].requires_grad_(), layer.follow(norm)
    augmented = norm(x)
    hook.remove()
    plain = norm(x)
    same(augmented, arrays[f'augmented_{epoch}'], OPS)
    same(plain, arrays[f'plain_{epoch}'], OPS)
    torch.autograd.backward([augmented, plain], [arrays['upstream_augmented'], arrays['upstream_plain']])
    for name, p in {'x': x, 'weight': norm.weight, 'gamma': layer.gamma, 'beta': layer.beta}.items():
        same(p.grad, arrays[f'grad_{name}_{epoch}'].view_as(p), OPS, name)


@recorded('afa_ops_*.npz')
def test_gram_loss(path):
    arrays, _ = load(path)
    maps = [arrays[f'gram_{kind}'].requires_grad_() for kind in ('plain', 'augmented')]
    loss = gram_loss(*maps)
    loss.backward()
    same(loss, arrays['gram'], OPS)
    for kind, x in zip(('plain', 'augmented'), maps, strict=True): same(x.grad, arrays[f'gram_grad_{kind}'], OPS)


def test_gram_loss_of_equal_streams_has_a_gradient():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    gram_loss(x, x.detach().clone()).backward()
    assert not x.grad.any()


def published_classifier(n_features, prefix='Domain_cls.'):
    net, noise = domain_classifier(n_features), noise_module()
    for part, name in {'0': 'fc', '1': 'batchn', '3': 'fc2'}.items():
        for k, v in net.get_submodule(part).state_dict(keep_vars=True).items():
            with torch.no_grad(): v.copy_(torch.as_tensor(noise.weights(f'{prefix}{name}.{k}', tuple(v.shape))))
    return net


@recorded('afa_ops_*.npz')
def test_domain_classifier(path):
    arrays, _ = load(path)
    lam = strength(float(arrays['domain_epoch'])/EPOCHS)
    same(lam, arrays['domain_lambda'], OPS)
    features, net = arrays['domain_feature'].requires_grad_(), published_classifier(arrays['domain_feature'].shape[1])
    loss = domain_loss(net, *features.chunk(2), lam)
    loss.backward()
    same(net(features).softmax(1), arrays['domain_probability'], OPS)
    same(loss, arrays['domain_loss'], OPS)
    same(features.grad, arrays['domain_grad_feature'], OPS)
    same(net[3].weight.grad, arrays['domain_grad_fc2'], OPS)


class AsRecorded(Callback):
    "γ, β and the domain classifier of a file at the start of the step, and their gradients at its end"
    order, run_valid = AFACallback.order + .1, False
    def __init__(self, step, layers): self.step, self.layers = step, layers

    @torch.no_grad()
    def before_batch(self):
        for theirs, ours in self.layers.items():
            for kind in ('gamma', 'beta'):
                getattr(self.afa.transformations[ours], kind).copy_(self.step[f'{theirs}.{kind}'].flatten())
        self.afa.discriminator.load_state_dict(published_classifier(512, 'feature.Domain_cls.').state_dict())

    def before_step(self):
        layers = {f'{theirs}.{kind}': getattr(self.afa.transformations[ours], kind).grad.view(1, -1, 1, 1)
                  for theirs, ours in self.layers.items() for kind in ('gamma', 'beta')}
        self.found = {'feature.Domain_cls.fc2.weight': self.afa.discriminator[3].weight.grad.clone(), **layers}


@recorded('afa_episode*.npz')
def test_step(path, monkeypatch):
    step = Step(path)
    epoch = int(step['meta'][5])
    theirs = [k.removesuffix('.noise_gamma') for k in step.arrays if k.endswith('.noise_gamma')]
    layers = {name: step.ours[f'{name}.weight'].removesuffix('.weight') for name in theirs}
    afa = AFACallback(lr=0.)
    def noise(p):
        [(name, kind)] = [(name, kind) for name, ours in layers.items() for kind in ('gamma', 'beta')
                          if getattr(afa.transformations[ours], kind) is p]
        return step[f'{name}.noise_{kind}'].flatten()
    monkeypatch.setattr(torch, 'randn_like', noise)
    seen, pooled = [], lambda encoder, args, maps: encoder.training and seen.append(maps.detach().mean((2, 3))) or None
    learn = step.learner(afa, step.episode(classes=tuple(range(step.way))))
    learn.add_cb(given := AsRecorded(step, layers))
    with step.model.encoder.register_forward_hook(pooled): learn.fit(epoch + 1, start_epoch=epoch)
    assert set(layers.values()) == set(afa.transformations)
    same(afa.losses['few_shot'], step['loss'], MAPS)
    same(afa.losses['domains'], step['domain_loss'], MAPS)
    same(afa.losses['gram'], step['gram'].mean(), MAPS)
    same(afa.losses['domains'] + strength(epoch/EPOCHS)*afa.losses['gram'], step['dc_loss'], MAPS)
    augmented, plain, *_ = seen
    for ours, kind in ((augmented, 'augmented'), (plain, 'plain')): same(ours, step[f'feature_{kind}'][step.order], MAPS, kind)
    step.check_gradients(learn.gradients, **given.found)
    step.check_buffers()


def learner(tmp_path, cb, **kwargs): return hue_learner(tmp_path/'hues', 'proto', cbs=cb, dls_kwargs=dict(n_episodes=2), **kwargs)


def test_transformations_stand_still_descend_and_ascend(tmp_path):
    start = dict(gamma=.3, beta=.5)
    for epoch, moves in ((0, False), (LEARNED, True), (REVERSED, True)):
        learn = learner(tmp_path, cb := AFACallback(lr=1e-2), lr=0.)
        learn.fit(epoch + 1, start_epoch=epoch)
        moved = any((getattr(layer, k) != v).any() for layer in cb.transformations.values() for k, v in start.items())
        assert moved == moves, epoch
        assert not any(m._forward_hooks for m in learn.model.modules())


def test_short_training_has_all_phases(tmp_path):
    learn = learner(tmp_path, cb := AFACallback(of_epochs=None))
    class Phase(Callback):
        found = []
        def after_train(self): self.found.append(cb.published_epoch)
    learn.fit(4, cbs=Phase())
    assert Phase.found == [0, 100, 200, 300]


def test_encoder_is_stepped_twice_unless_told_not_to(tmp_path):
    moved = {}
    for twice in (True, False):
        torch.manual_seed(0)
        learn = learner(tmp_path, AFACallback(twice=twice), wd=0.)
        before = weights(learn)
        learn.fit(1, 0.)
        moved[twice] = [k for k, v in weights(learn).items() if 'weight' in k and not torch.equal(v, before[k])]
    assert moved[True] and not moved[False]


def test_two_kinds_of_transformations_are_refused(tmp_path):
    learn = learner(tmp_path, [AFACallback(), LFTCallback(hue_loaders(tmp_path/'hues', seed=1))])
    with pytest.raises(ValueError, match='two callbacks with feature-wise transformations'): learn.fit(1)


def test_a_training_that_was_cut_off_goes_on(tmp_path):
    def train(*cbs):
        torch.manual_seed(0)
        learn = learner(tmp_path, [AFACallback(1e-2, of_epochs=None), *cbs])
        learn.fit(3)
        return learn
    whole = train()
    with pytest.raises(KeyboardInterrupt): train(ResumeFit(tmp_path/'state.pt'), CutOff(2))
    resumed = train(ResumeFit(tmp_path/'state.pt'))
    discriminators = whole.afa.discriminator.state_dict(), resumed.afa.discriminator.state_dict()
    for a, b in ((weights(whole), weights(resumed)), discriminators):
        assert all(torch.equal(v, b[k]) for k, v in a.items())
    for a, b in zip(whole.afa.ft_parameters, resumed.afa.ft_parameters, strict=True): assert torch.equal(a, b)
