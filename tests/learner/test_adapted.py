"`evaluate(adapt=…)`: rows by adaptation on the same episodes, labels of queries unseen, interrupted runs gone on with"
import json

import numpy as np
import pytest
import torch

from fsc_fastai.adapt import BDCSPN, PA, PMF, FineTune, SelfTraining, SimpleShot, get_adaptation, list_adaptations
from fsc_fastai.adapt.base import Adaptation
from fsc_fastai.data.sampler import EpisodeSampler
from fsc_fastai.learner import adapted
from fsc_fastai.learner.episode_scores import encode_images, episode_scores
from fsc_fastai.learner.evaluate import compare
from fsc_fastai.learner.results import format_table
from tests.adapt.test_adaptations import QUICK
from tests.learners import hue_learner

FEW = dict(n_episodes=3, n_query=2)


@pytest.fixture(scope='module')
def learn(tmp_path_factory): return hue_learner(tmp_path_factory.mktemp('adapted')/'hues', 'proto')


def test_a_row_each_paired_by_compare(learn):
    table = learn.evaluate(adapt={'none': None, 'pa': PA(steps=2), 'pmf': PMF(lr=1e-3, steps=1)}, **FEW)
    assert table.adapt.unique().tolist() == ['none', 'pa', 'pmf'] and 'adapt' in format_table(table)
    alone = learn.evaluate(**FEW)
    assert table.accuracy[table.adapt == 'none'].tolist() == alone.accuracy.tolist() and 'adapt' not in alone
    pa = learn.evaluate(adapt='pa:steps=2', **FEW)
    assert pa.accuracy.tolist() == table.accuracy[table.adapt == 'pa'].tolist()
    differences = compare(table)
    assert differences[differences.adapt == 'pa'].difference.tolist() == compare(alone, pa).difference.tolist()
    assert learn.evaluate(adapt=[SimpleShot(), BDCSPN()], **FEW).protocol.tolist()[-1].endswith('transductive')


def test_two_rows_of_one_name_are_refused(learn):
    with pytest.raises(ValueError, match='give a dictionary'): learn.evaluate(adapt=[PA(), PA(lr=.1)], **FEW)
    with pytest.raises(ValueError, match='SelfTraining'): learn.evaluate(adapt='pa', transductive=True, **FEW)


def test_self_training_is_transductive_inference(learn):
    one, other = learn.evaluate(adapt=SelfTraining(), **FEW), learn.evaluate(transductive=True, **FEW)
    assert one.attrs['episodes'] == other.attrs['episodes'] and one.protocol.tolist() == other.protocol.tolist()


@pytest.mark.parametrize('name', [n for n in list_adaptations() if not get_adaptation(n, **QUICK.get(n, {})).on_images
                                  and n not in ('self_training', 'distribution_calibration')])
def test_many_episodes_together_get_the_scores_that_they_get_one_by_one(learn, name):
    dl = next(iter(learn.dls.domains.values()))
    model = get_adaptation(name, **QUICK.get(name, {}))(learn.model.eval())
    features, sampler = encode_images(model, dl.images()), EpisodeSampler(dl.labels, 3, 2, 2, seed=0)
    together, alone = ([s for _, s, _ in episode_scores(model, features, sampler, 4, at_once=n)] for n in (4, 1))
    for a, b in zip(together, alone, strict=True): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class Spy(Adaptation):
    "Remembers what it was given"
    name, transductive = 'spy', True

    def __call__(self, model, support_x, support_y, query_x=None):
        self.given = support_x, support_y, query_x
        return model


def test_an_adaptation_never_sees_labels_of_queries(learn, monkeypatch):
    spy, whole = Spy(), adapted.episode_images
    given = []
    for turned in (False, True):
        def images(*args, turned=turned):
            x, y, query, query_y = whole(*args)
            return x, y, query, query_y.flip(0) if turned else query_y
        monkeypatch.setattr(adapted, 'episode_images', images)
        learn.evaluate(adapt=spy, n_episodes=1, n_query=2)
        given.append(spy.given)
    assert all(torch.equal(a, b) for a, b in zip(*given))


class Cut(PMF):
    "Breaks off in the third episode"
    calls = 0
    def __call__(self, *args):
        type(self).calls += 1
        if type(self).calls == 3: raise KeyboardInterrupt
        return super().__call__(*args)


def test_an_interrupted_run_goes_on_where_it_was(learn, tmp_path, monkeypatch):
    file, cut = tmp_path/'kept.json', Cut(lr=1e-3, steps=1)
    with pytest.raises(KeyboardInterrupt): learn.evaluate(adapt=cut, resume=file, **FEW)
    runs = json.loads(file.read_text())['runs']
    assert [len(o) for o in runs.values()] == [2]
    expected = learn.evaluate(adapt=PMF(lr=1e-3, steps=1), **FEW).attrs['episodes']
    calls = Cut.calls
    found = learn.evaluate(adapt=cut, resume=file, **FEW).attrs['episodes']
    assert Cut.calls - calls == 3 * len(found) - 2
    assert all(np.allclose(found[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match='other seed'): learn.evaluate(adapt=cut, resume=file, seed=1, **FEW)
    file.write_text('{')
    with pytest.raises(ValueError, match='no file of `evaluate`'): learn.evaluate(adapt=cut, resume=file, **FEW)


def test_the_adapted_model_is_explained(learn):
    for adapt in ('pa:steps=2', FineTune(steps=2)):
        explained = learn.explain(adapt=adapt)
        assert explained.query.abs().sum() > 0 and not torch.equal(explained.scores, learn.explain().scores)
