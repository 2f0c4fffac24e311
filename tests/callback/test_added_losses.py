"What FLoR, BSR, AFA, LDP-Net and first-order MAML have in common: how they live beside a learner, in one process and in two"
import pytest
import torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed

from fsc_fastai.callback.afa import AFACallback
from fsc_fastai.callback.bsr import BSRCallback
from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.callback.ldp_net import LDPNetCallback
from fsc_fastai.callback.maml import FirstOrderMAML
from fsc_fastai.encode.encoder import create_encoder
from tests.learners import hue_learner, weights, write_hues
from tests.ranks import in_ranks

KINDS = {'FLoR': lambda: None, 'BSR': BSRCallback, 'AFA': lambda: AFACallback(of_epochs=None),
         'LDP': lambda: LDPNetCallback(crop_size=16), 'MAML': lambda: FirstOrderMAML(epochs=1)}
kinds = pytest.mark.parametrize('kind', KINDS)


@pytest.fixture(scope='module')
def hues(tmp_path_factory): return write_hues(tmp_path_factory.mktemp('hues')/'images')


def make(hues, kind, *cbs, **kwargs):
    "A learner that starts alike and draws alike"
    set_seed(3)
    arch = create_encoder('conv4', img_size=32, flor=(1., 1.)) if kind == 'FLoR' else 'conv4'
    own = [cb for cb in [KINDS[kind]() if kind in KINDS else None, *cbs] if cb is not None]
    settings = dict(n_episodes=2, val_n_episodes=1, size=32, batch_tfms=[]) | kwargs
    return hue_learner(hues, 'proto', arch, cbs=own, dls_kwargs=settings)


def clean(learn): return not any(m._forward_hooks or m._forward_pre_hooks or 'forward' in vars(m) for m in learn.model.modules())


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'FLoR'])
def test_lr_find_and_validation_are_those_of_the_plain_learner(hues, kind):
    def found(kind):
        learn = make(hues, kind)
        validated = list(learn.validate())
        learn.lr_find(num_it=3, show_plot=False, suggest_funcs=None)
        return [float(o) for o in learn.recorder.losses], validated, learn
    (plain, validated, _), (ours, ours_validated, learn) = found('plain'), found(kind)
    assert ours == plain and ours_validated == validated and clean(learn)
    before = weights(learn)
    learn.fit(1)
    assert any(not torch.equal(v, before[k]) for k, v in weights(learn).items()) and clean(learn)


@kinds
@pytest.mark.parametrize('event', ['forward', 'after_pred', 'after_step'])
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
    assert clean(learn) and not {'classify', 'training_output'} & set(vars(learn.model))
    learn.fit(1)
    assert all(v.isfinite().all() for v in weights(learn).values())


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'FLoR'])
def test_compiled_models_are_refused(hues, kind):
    learn = make(hues, kind)
    learn.model.encoder.compile()
    with pytest.raises(ValueError, match='a compiled model'): learn.fit(1)


def in_a_rank(hues, kind):
    learn = make(hues, kind, n_episodes=4)
    with learn.distrib_ctx(cpu=True): learn.fit(1, .01)
    own = {'AFA': lambda: [*learn.afa.ft_parameters, *learn.afa.discriminator.parameters()],
           'LDP': lambda: [*learn.ldp_net.momentum_encoder.parameters()]}.get(kind, list)()
    return weights(learn), [p.detach() for p in own]


@kinds
def test_ranks_keep_one_model(hues, tmp_path, kind):
    (a, own_a), (b, own_b) = in_ranks(in_a_rank, tmp_path, hues, kind)
    assert all(torch.equal(v, b[k]) and v.isfinite().all() for k, v in a.items())
    assert all(map(torch.equal, own_a, own_b)) and bool(own_a) == (kind in ('AFA', 'LDP'))
