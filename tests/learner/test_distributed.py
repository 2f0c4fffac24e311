"Two processes that train, validate and evaluate together do what one does"
import os
import subprocess
import sys
import time
from functools import partial
from textwrap import dedent

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import load_learner
from fastai.optimizer import SGD

from fsc_fastai.callback.accumulate import EpisodeAccumulation
from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.callback.lft import LFTCallback
from fsc_fastai.learner import evaluate

from ..learners import hue_learner, hue_loaders, weights
from ..ranks import in_ranks


class Gradients(Callback):
    "Keeps the gradient of every step"
    order, run_valid = 50, False
    def before_fit(self): self.seen = []
    def before_step(self): self.seen.append([p.grad.clone() for p in self.opt.all_params().itemgot(0) if p.grad is not None])


def learner(hues, method='relation', cbs=(), n_episodes=2, **kwargs):
    "The same in every process, with plain gradient descent"
    torch.manual_seed(0)
    return hue_learner(hues, method, cbs=[*cbs], opt_func=partial(SGD, mom=0.), dls_kwargs=dict(
        n_episodes=n_episodes, batch_tfms=[], val_n_episodes=5), **kwargs)


def train(hues, method, cbs, n_episodes=2):
    "Gradients and weights after an epoch; by the ranks where there are any"
    learn = learner(hues, method, [*(cb() for cb in cbs), Gradients()], n_episodes)
    with learn.distrib_ctx(cpu=True): learn.fit(1, 0.1)
    return learn.gradients.seen, weights(learn)


@pytest.mark.parametrize('cbs', [[], [LRPGuidedCallback]], ids=['plain', 'guided'])
@pytest.mark.parametrize('method', ['relation', 'cross_attention', 'gnn'])
def test_gradients_are_the_mean_over_the_episodes_of_all_ranks(hues, tmp_path, method, cbs):
    (a, weights_a), (b, weights_b) = in_ranks(train, tmp_path, hues, method, cbs, 4)
    assert len(a) == len(b) == 2
    for x, y in zip(a, b, strict=True): assert all(map(torch.equal, x, y))
    assert all(torch.equal(weights_a[k], weights_b[k]) for k in weights_a), 'running statistics as well'
    alone, weights_alone = train(hues, method, [*cbs, partial(EpisodeAccumulation, 2)], 4)
    for x, y in zip(a[0], alone[0], strict=True): torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
    assert max(g.abs().max() for g in alone[0]) > 1e-3
    for k, _ in learner(hues, method).model.named_parameters():
        torch.testing.assert_close(weights_a[k], weights_alone[k], rtol=1e-4, atol=1e-5)


def validate(hues):
    "What the recorder shows of a validation of five episodes, and the scores of their queries"
    learn = learner(hues)
    with learn.distrib_ctx(cpu=True):
        learn.dl = learn.dls.valid
        return list(learn.validate()), learn.get_preds(dl=learn.dls.valid)


def test_validation_counts_every_episode_once_and_in_order(hues, tmp_path):
    ranks, (record, preds) = in_ranks(validate, tmp_path, hues), validate(hues)
    for rank_record, rank_preds in ranks:
        assert rank_record[1:] == pytest.approx(record[1:]), 'accuracy and interval'
        torch.testing.assert_close(rank_preds, preds)


def tables(hues, **kwargs):
    "The evaluation, the accuracies that it rests on, and the confusions"
    learn = learner(hues, kwargs.pop('method', 'relation'))
    with learn.distrib_ctx(cpu=True):
        table = learn.evaluate(n_query=4, **kwargs)
        return table, table.attrs['episodes'], learn.confusion('novel', n_episodes=9, n_query=4)


@pytest.mark.parametrize('kwargs', [dict(n_episodes=7), dict(n_episodes=7, transductive=True), dict(method='gnn', n_episodes=3)],
                         ids=['together', 'transductive', 'one by one'])
@pytest.mark.parametrize('at_once', [3, 64], ids=['several shares', 'one rank has none'])
def test_evaluation_gives_the_table_of_one_process(hues, tmp_path, monkeypatch, kwargs, at_once):
    monkeypatch.setattr(evaluate, 'episode_scores', partial(evaluate.episode_scores, at_once=at_once))
    monkeypatch.setattr(evaluate, 'encode_domain', partial(evaluate.encode_domain, bs=20))
    table, episodes, confusion = tables(hues, **kwargs)
    for shared_table, shared_episodes, shared_confusion in in_ranks(partial(tables, hues, **kwargs), tmp_path):
        pd.testing.assert_frame_equal(shared_table, table, check_exact=True)
        pd.testing.assert_frame_equal(shared_confusion, confusion, check_exact=True)
        assert shared_episodes == episodes and len(episodes['novel']) == kwargs['n_episodes']


def lft_guided(hues):
    "γ, β and weights after LFT-LRP"
    cb = LFTCallback([hue_loaders(hues, n_episodes=4, seed=1, batch_tfms=[])])
    cb.domains.check = lambda dls: None  # the same images here
    learn = learner(hues, cbs=[cb, LRPGuidedCallback()], n_episodes=4)
    with learn.distrib_ctx(cpu=True): learn.fit(1, 0.05)
    return [p.detach() for p in cb.ft_parameters], weights(learn), list(learn.model.state_dict())


def test_transformations_learned_with_explanations_stay_alike(hues, tmp_path):
    (ft_a, weights_a, keys), (ft_b, weights_b, _) = in_ranks(lft_guided, tmp_path, hues)
    assert all(map(torch.equal, ft_a, ft_b)) and all(torch.equal(weights_a[k], weights_b[k]) for k in keys)
    assert any((p - value).abs().max() > 1e-5 for p, value in zip(ft_a, [.3, .5] * len(ft_a), strict=False))


def fine_tune_and_export(hues):
    "The weights after pre-training and both phases, and what the learner looks like afterwards"
    learn = learner(hues, n_episodes=4)
    model, loaders, logger = learn.model, list(learn.dls.loaders), learn.logger
    with learn.distrib_ctx(cpu=True):
        torch.manual_seed(int(os.environ.get('RANK', 0)))  # each rank would shuffle its own way
        learn.fine_tune(1, pretrain_epochs=1)
        learn.export('shared.pkl')
    same = learn.model is model and learn.dls.loaders == loaders and learn.logger is logger
    return weights(learn), same and not hasattr(learn, 'episode_distributed_trainer')


def test_fine_tune_shares_the_pretraining_and_leaves_no_trace(hues, tmp_path):
    (a, same_a), (b, same_b) = in_ranks(fine_tune_and_export, tmp_path, hues)
    assert same_a and same_b and all(torch.equal(a[k], b[k]) for k in a)
    loaded = load_learner(hues.parent/'shared.pkl')
    assert all(torch.equal(a[k], v) for k, v in loaded.model.state_dict().items())


class Fail(Callback):
    "An error of the user's in the first step"
    def after_pred(self): raise RuntimeError('of the user')


def fail(hues):
    "Whether the learner is as before after an error, and whether it trains"
    learn = learner(hues, cbs=[Fail()])
    model, loaders = learn.model, list(learn.dls.loaders)
    with pytest.raises(RuntimeError, match='of the user'), learn.distrib_ctx(cpu=True): learn.fit(1)
    same = learn.model is model and learn.dls.loaders == loaders
    learn.remove_cb(Fail)
    with learn.distrib_ctx(cpu=True): learn.fit(1)
    return same


def test_an_error_leaves_the_learner_whole(hues, tmp_path): assert in_ranks(fail, tmp_path, hues) == [True, True]


class StandsStill(Callback):
    "Keeps the second rank in its first step until the first one has told of it"
    def __init__(self, told): self.told = told
    def before_batch(self):
        while os.environ['RANK'] == '1' and not self.told.exists(): time.sleep(.1)


def stand_still(hues, told):
    "What a rank says when it was kept waiting, or found the other gone"
    learn = learner(hues, cbs=[StandsStill(told)])
    try:
        with learn.distrib_ctx(cpu=True, timeout=10): learn.fit(1)
    except ConnectionError as e: said = str(e)
    told.touch()
    return said, hasattr(learn, 'episode_distributed_trainer')


def test_a_rank_that_stands_still_is_waited_for_no_longer_than_said(hues, tmp_path):
    (first, still_shared), _ = in_ranks(stand_still, tmp_path, hues, tmp_path/'told')
    assert 'rank 0 of 2 waited' in first and '10 s' in first and 'timeout=' in first and not still_shared


def synchronised(hues):
    with learner(hues).distrib_ctx(cpu=True, sync_bn=True): pass


def test_synchronised_batch_norm_needs_gpus(hues, tmp_path):
    with pytest.raises(Exception, match='sync_bn=True needs GPUs, this process trains on cpu'):
        in_ranks(synchronised, tmp_path, hues)


def test_one_process_needs_no_accelerate(hues):
    learn = learner(hues)
    with learn.distrib_ctx(): assert not hasattr(learn, 'episode_distributed_trainer')


@pytest.mark.slow
def test_script_runs_as_documented(hues, tmp_path):
    script = tmp_path/'train.py'
    script.write_text(dedent(f"""
        from fsc_fastai.all import *
        dls = EpisodeDataLoaders.from_folder({str(hues)!r}, n_way=3, n_shot=2, n_query=3, n_episodes=4, size=20)
        learn = fsc_learner(dls, 'conv4', RelationNet, cbs=LRPGuidedCallback(), path={str(tmp_path)!r})
        with learn.distrib_ctx():
            learn.fine_tune(1, pretrain_epochs=1)
            table = learn.evaluate(n_episodes=20, n_query=5)
        learn.export('shared.pkl')
        if not rank_distrib(): table.to_csv({str(tmp_path/'table.csv')!r})
    """))
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', str(script)]
    subprocess.run(command, check=True, env=os.environ | {'OMP_NUM_THREADS': '1'}, cwd=tmp_path)
    assert (tmp_path/'shared.pkl').exists() and 'novel' in (tmp_path/'table.csv').read_text()
