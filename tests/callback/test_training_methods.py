"What later training methods have in common: how they live beside a learner and its other callbacks, in one process and in two"
from copy import deepcopy

import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import load_learner
from fastai.torch_core import set_seed

from fsc_fastai.callback import styleadv
from fsc_fastai.callback.afa import AFACallback
from fsc_fastai.callback.ata import ATACallback
from fsc_fastai.callback.bsr import BSRCallback
from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.callback.ldp_net import LDPNetCallback
from fsc_fastai.callback.lft import FTCallback, LFTCallback
from fsc_fastai.callback.maml import FirstOrderMAML
from fsc_fastai.callback.styleadv import StyleAdvCallback
from fsc_fastai.callback.svasp import SVasPCallback
from fsc_fastai.callback.wave_san import WaveSANCallback
from fsc_fastai.encode.encoder import create_encoder
from tests.learners import hue_learner, hue_loaders, weights
from tests.methods.toys import METHODS
from tests.ranks import in_ranks

from .episodes import assert_same

STYLED = {'StyleAdv': StyleAdvCallback, 'SVasP': SVasPCallback, 'ATA': ATACallback, 'wave-SAN': WaveSANCallback}
"Those that change pixels or styles"
KINDS = STYLED | {'BSR': BSRCallback, 'AFA': lambda: AFACallback(of_epochs=None), 'LDP': lambda: LDPNetCallback(crop_size=16),
                  'MAML': lambda: FirstOrderMAML(epochs=1)}
kinds = pytest.mark.parametrize('kind', KINDS)
styled = pytest.mark.parametrize('kind', STYLED)
with_flor = pytest.mark.parametrize('kind', [*KINDS, 'FLoR'])


def make(hues, *cbs, method='proto', arch='conv4', **kwargs):
    "A learner that starts alike and draws alike; FLoR is norms of its encoder"
    set_seed(3)
    if 'FLoR' in cbs: arch = create_encoder('conv4', img_size=20, flor=(1., 1.))
    lft = lambda: LFTCallback(hue_loaders(hues, n_episodes=2, seed=1, batch_tfms=[]))
    own = KINDS | {'FT': FTCallback, 'LFT': lft}
    return hue_learner(hues, method, arch, cbs=[own[cb]() if isinstance(cb, str) else cb for cb in cbs if cb != 'FLoR'],
                       dls_kwargs=dict(n_episodes=2, val_n_episodes=1, batch_tfms=[]) | kwargs)


def clean(learn):
    "Is nothing of a callback left on the model?"
    return not any(m._forward_hooks or m._forward_pre_hooks or {'forward', 'classify', 'training_output'} & set(vars(m))
                   for m in learn.model.modules())


@kinds
def test_lr_find_and_validation_are_those_of_the_plain_learner(hues, kind):
    def found(*cbs):
        learn = make(hues, *cbs)
        validated = list(learn.validate())
        learn.lr_find(num_it=3, show_plot=False, suggest_funcs=None)
        return [float(o) for o in learn.recorder.losses], validated, learn
    (plain, validated, _), (ours, ours_validated, learn) = found(), found(kind)
    assert ours == plain and ours_validated == validated and clean(learn)
    before = weights(learn)
    learn.fit(1)
    assert any(not torch.equal(v, before[k]) for k, v in weights(learn).items()) and clean(learn)
    assert list(learn.validate()) == list(learn.validate())


@styled
@pytest.mark.parametrize('method', METHODS)
def test_guided_loss_is_a_part_of_theirs(hues, kind, method):
    class Watch(Callback):
        order, run_valid = 9, False
        def after_loss(self): self.total = float(self.loss.detach())
    learn = make(hues, cb := KINDS[kind](), LRPGuidedCallback(xi=.7, lam=.4), watch := Watch(), method=method, n_episodes=1)
    learn.fit(1)
    plain, guided = learn.lrp_guided.losses[0]
    guided_loss = .7*plain + .4*guided
    if kind == 'ATA': expected = guided_loss
    elif kind == 'wave-SAN': expected = .2*cb.losses['plain'] + .8*cb.losses['swapped'] + cb.losses['kl']
    else: expected = guided_loss + sum(cb.losses.values())
    torch.testing.assert_close(torch.tensor(watch.total), expected.float(), rtol=1e-5, atol=1e-5)
    assert clean(learn)


@pytest.mark.parametrize('kind', [*KINDS, 'FLoR', 'LFT'])
@pytest.mark.parametrize('event', ['before_batch', 'forward', 'after_pred', 'after_step'])
def test_an_error_leaves_the_learner_usable(hues, kind, event):
    learn, broken = make(hues, kind, LRPGuidedCallback()), True
    def fail(*args):
        if broken: raise RuntimeError('out of memory')
    if event == 'forward': handle = learn.model.encoder.body.stages[3].register_forward_pre_hook(fail)
    else: learn.add_cb(Callback(**{event: fail}))
    # AFA's first pass looks for the places of its transformations, and says so
    with pytest.raises((RuntimeError, ValueError), match='out of memory'): learn.fit(1)
    broken = False
    if event == 'forward': handle.remove()
    assert clean(learn) and len({m.training for m in learn.model.modules()}) == 1 and torch.backends.cuda.flash_sdp_enabled()
    learn.fit(1)
    assert all(v.isfinite().all() for v in weights(learn).values())


@styled
@pytest.mark.parametrize('arch', ['mobilenetv3_small_050', 'convnext_atto'])
def test_backbones_of_timm(hues, kind, arch):
    learn = make(hues, kind, arch=arch, n_way=2, n_shot=1, n_query=1, n_episodes=1, size=64)
    before = weights(learn)
    learn.fit(1)
    assert any(not torch.equal(before[k], v) for k, v in weights(learn).items()) and clean(learn)


def test_vit_has_no_styles_but_pixels(hues):
    small = dict(arch='vit_tiny_patch16_224', n_way=2, n_shot=1, n_query=1, n_episodes=1, size=64)
    for cb in (StyleAdvCallback(), SVasPCallback(), WaveSANCallback()):
        learn = make(hues, cb, **small)
        with pytest.raises(ValueError, match='no style of a channel'): learn.fit(1)
        assert clean(learn)
    for cb in (ATACallback(), StyleAdvCallback(vit_view=True), SVasPCallback(vit_view=True)): make(hues, cb, **small).fit(1)


@pytest.mark.parametrize('kind', [*(kind for kind in KINDS if kind != 'ATA'), 'FT', 'LFT'])
def test_compiled_models_are_refused(hues, kind):
    learn = make(hues, kind)
    plain, learn.model = learn.model, torch.compile(learn.model)
    with pytest.raises(ValueError, match='compiled model'): learn.fit(1)
    learn.model = plain
    plain.encoder.compile()
    with pytest.raises(ValueError, match='compiled model'): learn.fit(1)


@pytest.mark.parametrize('kind', ['StyleAdv', 'SVasP'])
def test_the_classifier_outlasts_a_fit_and_goes_into_files(hues, kind, tmp_path):
    learn = make(hues, cb := KINDS[kind]())
    learn.fit(1)
    kept, state = cb.global_classifier, deepcopy(cb.state_dict())
    learn.save(tmp_path/'model')
    learn.export(tmp_path/'learner.pkl')
    learn.fit(1)
    assert cb.global_classifier is kept and not torch.equal(kept.weight, state['weight'])
    other = make(hues, again := KINDS[kind]())
    other.load(tmp_path/'model')
    other.fit(1, 0.)
    assert torch.equal(again.global_classifier.weight, state['weight'])
    loaded = load_learner(tmp_path/'learner.pkl')
    assert next(cb for cb in loaded.cbs if isinstance(cb, KINDS[kind])).global_classifier is None


def test_an_exported_partner_is_asked_for(hues, tmp_path):
    learn = make(hues, WaveSANCallback(make(hues).dls.train))
    learn.fit(1)
    learn.export(tmp_path/'learner.pkl')
    loaded = load_learner(tmp_path/'learner.pkl')
    loaded.dls = learn.dls
    with pytest.raises(ValueError, match='no partner'): loaded.fit(1)


def test_repairs(hues, monkeypatch):
    def fit(cb):
        learn = make(hues, cb)
        styles, attack = [], StyleAdvCallback.attack
        def spy(*args):
            styles.append(attack(*args))
            return styles[-1]
        with monkeypatch.context() as patch:
            patch.setattr(StyleAdvCallback, 'attack', spy)
            learn.fit(1)
        return styles[0], cb.losses
    published, _ = fit(StyleAdvCallback(epsilons=[2.]))
    bounded, _ = fit(StyleAdvCallback(epsilons=[2.], min_std=.1))
    random, _ = fit(StyleAdvCallback(epsilons=[2.], start='gaussian'))
    first = next(iter(published))
    assert min(std.min() for _, std in published.values()) < 0
    assert min(std.min() for _, std in bounded.values()) == pytest.approx(.1)
    moved = (random[first][0] - published[first][0])/styleadv.START
    assert abs(moved.mean() + 1) < .2 and abs(moved.std() - 1) < .2
    assert fit(StyleAdvCallback(p_skip=1.))[1]['kl'] == 0 < fit(StyleAdvCallback(p_skip=0.))[1]['kl']
    still, always = WaveSANCallback(p_swap=0.), WaveSANCallback()
    for cb in (still, always): make(hues, cb).fit(1)
    torch.testing.assert_close(still.losses['plain'], still.losses['swapped'])
    assert still.losses['kl'] < 1e-6 < always.losses['kl'] and (always.losses['plain'] - always.losses['swapped']).abs() > 1e-4
    with pytest.raises(ValueError, match="start='zero': choose from"): StyleAdvCallback(start='zero')


def in_a_rank(hues, kind):
    "Weights of the model, and what a method has beside it"
    learn = make(hues, cb := KINDS.get(kind, lambda: 'FLoR')(), n_episodes=4)
    with learn.distrib_ctx(cpu=True): learn.fit(1, .01)
    classifier = lambda: [cb.global_classifier.weight, cb.global_classifier.bias]
    own = {'AFA': lambda: [*cb.ft_parameters, *cb.discriminator.parameters()], 'StyleAdv': classifier, 'SVasP': classifier,
           'LDP': lambda: [*cb.momentum_encoder.parameters()]}.get(kind, list)()
    return weights(learn), [p.detach() for p in own], [float(v) for v in getattr(cb, 'losses', {}).values()]


@with_flor
def test_ranks_keep_one_model(hues, tmp_path, kind):
    (a, own_a, losses_a), (b, own_b, losses_b) = in_ranks(in_a_rank, tmp_path, hues, kind)
    assert_same(a, b, rtol=0, atol=0)
    assert all(v.isfinite().all() for v in a.values())
    assert all(map(torch.equal, own_a, own_b)) and bool(own_a) == (kind in ('AFA', 'LDP', 'StyleAdv', 'SVasP'))
    assert losses_a != losses_b or not losses_a, 'each has episodes of its own'
