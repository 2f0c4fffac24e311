"What FT and LFT keep: from one fit to the next, in files, in exported learners"
import copy

import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner, load_learner

from fsc_fastai.callback.lft import LFTCallback
from fsc_fastai.encode.transformation import ft_layers
from fsc_fastai.learner.core import FSCLearner
from tests.learners import hue_learner, weights

from ..episodes import Episodes, assert_same, build_model, learner, lft


def test_optimizer_survives_both_phases_of_fine_tune():
    cb = lft(ft_lr=1e-3)
    learn = learner([cb])
    opts = []
    class Watch(Callback):
        def after_train(self): opts.append(cb.ft_opt)
    learn.add_cb(Watch())
    learn.fine_tune(1, freeze_epochs=1)
    assert opts[0] is opts[1] and {int(s['step']) for s in cb.ft_opt.state.values()} == {6}


def saved_learner(path, cbs, **kwargs): return learner(cbs, cls=FSCLearner, path=path, **kwargs)


@pytest.mark.parametrize('aux', [False, True])
def test_save_and_load_go_on_as_if_nothing_had_happened(tmp_path, aux):
    def fit(learn):
        torch.manual_seed(3)
        learn.fit(1)
        return weights(learn), learn.lft.state_dict()
    domains = lambda: {'a': Episodes(2, seed=1), 'b': Episodes(2, seed=2)}
    first = saved_learner(tmp_path, [LFTCallback(domains(), aux=aux)])
    fit(first)
    first.save('half')
    whole = fit(first)
    resumed = saved_learner(tmp_path, [LFTCallback(domains(), aux=aux)], model=build_model(seed=7)).load('half')
    found = fit(resumed)
    assert_same(whole[0], found[0], rtol=0, atol=0)
    for name, layer in whole[1]['transformations'].items():
        assert_same(layer, found[1]['transformations'][name], rtol=0, atol=0)
        assert not torch.equal(layer['gamma'], torch.full_like(layer['gamma'], .3))
    assert str(whole[1]['opt']) == str(found[1]['opt']) and whole[1]['domains'] == found[1]['domains']
    if aux: assert_same(whole[1]['aux_head'], found[1]['aux_head'], rtol=0, atol=0)


@pytest.mark.filterwarnings('error:Could not load', 'error:Saved file')
def test_files_with_and_without_the_state_of_callbacks(tmp_path):
    plain, with_lft = saved_learner(tmp_path, []), saved_learner(tmp_path, [lft()])
    for name, learn in {'plain': plain, 'lft': with_lft}.items():
        learn.fit(1)
        learn.save(name)
    kept = torch.load(tmp_path/'models'/'plain.pth', weights_only=False)
    assert set(kept) == {'model', 'opt'} and set(kept['opt']) == {'state', 'hypers'}
    # a file of a plain learner leaves γ, β where they start
    other = saved_learner(tmp_path, [lft()]).load('plain')
    assert_same(weights(other), weights(plain))
    assert other.lft.state_dict().keys() == {'domains'}
    # and one with their state is read by a learner without the callback, and by fastai's own
    for cls in (FSCLearner, Learner):
        assert_same(weights(learner([], cls=cls, path=tmp_path).load('lft')), weights(with_lft))
    with_lft.save('weights', with_opt=False)
    assert_same(torch.load(tmp_path/'models'/'weights.pth'), with_lft.model.state_dict())
    other.load('weights', with_opt=False)
    assert other.lft.state_dict().keys() == {'domains'}


def test_loading_other_transformations_is_an_error(tmp_path):
    learn = saved_learner(tmp_path, [lft()])
    learn.fit(1)
    learn.save('all')
    other = saved_learner(tmp_path, [lft(names=['encoder.body.stages.3.norm'])])
    other.fit(1)
    with pytest.raises(ValueError, match='saved transformations follow encoder.body.stages.0'): other.load('all')
    fresh = saved_learner(tmp_path, [lft(names=['encoder.body.stages.3.norm'])]).load('all')
    with pytest.raises(ValueError, match='saved transformations follow encoder.body.stages.0'): fresh.fit(1)


def test_state_of_another_callback_is_refused():
    cb, other, without = lft(aux=True), lft(aux=True, names=['encoder.body.stages.3.norm']), lft(aux=False)
    for o in (cb, other, without): learner([o], n=1).fit(1)
    with pytest.raises(ValueError, match='saved transformations follow encoder.body.stages.0'):
        other.load_state_dict(cb.state_dict())
    with pytest.raises(ValueError, match='saved with aux'): without.load_state_dict(cb.state_dict())


def test_lr_find_leaves_everything_alone(tmp_path):
    cb = lft()
    learn = learner([cb])
    learn.path = tmp_path
    learn.lr_find(num_it=6, show_plot=False, suggest_funcs=None)
    assert not cb.transformations and cb.state_dict()['domains']['epoch'] == 0
    learn.fit(1)
    before = copy.deepcopy(cb.state_dict())
    learn.lr_find(num_it=6, show_plot=False, suggest_funcs=None)
    assert str(before) == str(cb.state_dict())
    learn.fit(1)
    assert cb.state_dict()['domains']['epoch'] == 2


def attributes(model):
    "The parts of a model, and what each holds"
    return [(name, type(part), sorted(vars(part))) for name, part in model.named_modules()]


def test_fine_tune_export_and_load_with_real_episodes(tmp_path, other_domain):
    cb = LFTCallback(other_domain.train)
    learn = hue_learner(tmp_path/'hues', cbs=cb)
    learn.fine_tune(1, pretrain_epochs=1)
    parts = attributes(learn.model)
    learn.save('with')
    learn.export()
    loaded = load_learner(tmp_path/'export.pkl')
    assert attributes(loaded.model) == parts and not ft_layers(loaded.model)
    assert not loaded.lft.transformations and loaded.lft.domains is None and loaded.lft.ft_opt is None
    assert loaded.lft.state_dict() == {}
    loaded.opt_func, loaded.dls = learn.opt_func, learn.dls
    loaded.load('with')
    assert_same(weights(loaded), weights(learn))
    learn.fit(1)  # the exported one goes on
    with pytest.raises(ValueError, match='no pseudo-unseen domains'): loaded.fit(1)
