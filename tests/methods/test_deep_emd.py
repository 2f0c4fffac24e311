"""A new method goes through the whole library: one file, `deep_emd.py`, and one line, the import of it below.

Files of the package that were touched for it: none.
"""
import numpy as np
import pytest
import torch
from fastai.learner import load_learner
from torch.testing import assert_close

from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.deploy import FewShotClassifier
from fsc_fastai.explain import LRP
from fsc_fastai.explain.weights import relevance_start

from ..learners import SIZE, hue_learner, weights
from .deep_emd import DeepEMD, matching
from .toys import processed


@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    learn = hue_learner(tmp_path_factory.mktemp('emd')/'hues', 'deep_emd', cbs=LRPGuidedCallback(),
                        dls_kwargs=dict(n_episodes=8))
    before = weights(learn)
    learn.fit(1, 1e-2)
    assert len(learn.lrp_guided.losses) == 8 and all(loss.isfinite() for pair in learn.lrp_guided.losses for loss in pair)
    assert any(not torch.equal(before[k], v) for k, v in weights(learn).items() if k.endswith('weight'))
    return learn


def test_a_matching_moves_all_of_both_weights():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.rand(n, generator=g).softmax(0) for n in (4, 5))
    plan = matching(torch.randn(4, 5, generator=g), a, b, rounds=200)
    assert_close(plan.sum(1), a)
    assert_close(plan.sum(0), b)


def test_relevance_is_that_of_the_scores():
    model, f_p = processed('deep_emd')
    start = relevance_start(model.classify(f_p), 1e-9)
    assert_close(LRP(1e-9)(model, f_p).flatten(2).sum(2), start, rtol=1e-3, atol=1e-4)


def test_evaluate_and_explain(learn):
    table = learn.evaluate({'novel': learn.path/'hues'/'novel'}, n_episodes=4, n_query=3)
    assert table['accuracy'].item() > 1/3
    R = learn.explain(explain_support=True)
    assert R.query.shape == (3, 3, 3, SIZE, SIZE) and R.support.shape[:3] == (3, 3, 6)
    assert R.query.isfinite().all() and R.query.abs().sum() > 0 and R.attention is None


def test_export_deployment_and_bundle(learn, tmp_path):
    learn.export(tmp_path/'model.pkl')
    assert isinstance(load_learner(tmp_path/'model.pkl').model, DeepEMD)
    classes = sorted((learn.path/'hues'/'novel').iterdir())
    queries = [sorted(c.iterdir())[-1] for c in classes]
    known = learn.set_support(learn.path/'hues'/'novel').classifier()
    found = known.predict_proba(queries)
    assert found.shape == (4, 4) and (found.argmax(1) == np.arange(4)).mean() > 1/2
    loaded = FewShotClassifier.from_pretrained(known.save(tmp_path/'bundle'))
    assert isinstance(loaded.model, DeepEMD)
    np.testing.assert_allclose(loaded.predict_proba(queries), found, rtol=1e-5)
