"What every method on features keeps to: batched as one by one, any order, unequal shots, odd features, clear refusals"
import pytest
import torch

from fsc_fastai.adapt.bdcspn import BDCSPN
from fsc_fastai.adapt.distribution_calibration import DistributionCalibration
from fsc_fastai.adapt.label_propagation import LabelPropagation
from fsc_fastai.adapt.laplacian_shot import LaplacianShot
from fsc_fastai.adapt.linear import LDAHead, LogisticHead, RidgeHead
from fsc_fastai.adapt.pa import PA
from fsc_fastai.adapt.prototypes import TransductiveTuning, TunedPrototypes
from fsc_fastai.adapt.pt_map import PTMAP
from fsc_fastai.adapt.simple_shot import SimpleShot, SupportCentred
from fsc_fastai.adapt.tim import TIM, TIMADM
from fsc_fastai.adapt.tip_adapter import TipAdapter

N_BASE, D = 6, 12


def calibration():
    g = torch.Generator().manual_seed(5)
    base = torch.rand(N_BASE, 30, D, generator=g)
    return DistributionCalibration(base_means=base.mean(1), base_covariances=torch.stack([b.T.cov() for b in base]), n_draws=20)


METHODS = {
    'simple_shot': SimpleShot(treatment='cl2'), 'support_centred': SupportCentred(), 'pa': PA(steps=5), 'tip': TipAdapter(),
    'ridge': RidgeHead(treatment='l2'), 'lda': LDAHead(treatment='l2'), 'logistic': LogisticHead(treatment='l2'),
    'tuned': TunedPrototypes(steps=5, lr=.01), 'calibration': calibration(), 'bdcspn': BDCSPN(), 'laplacian': LaplacianShot(),
    'tim': TIM(steps=5, lr=.01), 'tim_gd': TIM.published(steps=5, lr=.01), 'tim_adm': TIMADM(steps=5), 'pt_map': PTMAP(),
    'pt_map_published': PTMAP.published(), 'propagation': LabelPropagation(k=4),
    'transductive_tuning': TransductiveTuning(steps=5, lr=.01)}
every_method = pytest.mark.parametrize('name', METHODS)


def episodes(n, shots=(3, 3, 3, 3), n_query=4, seed=0):
    "n episodes of classes with a mean each, features not negative"
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(len(shots)).repeat_interleave(torch.tensor(shots))
    query_y = torch.arange(len(shots)).repeat_interleave(n_query)
    centres = torch.rand(n, len(shots), D, generator=g, dtype=torch.double)
    draw = lambda y: (centres[:, y] + .1 * torch.randn(n, len(y), D, generator=g, dtype=torch.double)).relu()
    return draw(y), y, draw(query_y), query_y


@every_method
def test_episodes_together_and_one_by_one_get_the_same_scores(name):
    support, y, query, query_y = episodes(3)
    together = METHODS[name].fit(support, y, query)(query)
    for k in range(3):
        torch.testing.assert_close(METHODS[name].fit(support[k], y, query[k])(query[k]), together[k])
    assert (together.argmax(-1) == query_y).double().mean() > .8


@pytest.mark.parametrize('name', sorted(METHODS.keys() - {'calibration'}))  # whose draws follow the order of the samples
def test_the_order_of_samples_and_classes_changes_nothing(name):
    support, y, query, _ = (t[0] if t.ndim == 3 else t for t in episodes(1, (2, 3, 1, 4)))
    expected = METHODS[name].fit(support, y, query)(query)
    g = torch.Generator().manual_seed(1)
    order, turned = torch.randperm(len(y), generator=g), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(METHODS[name].fit(support[order], y[order], query)(query), expected)
    torch.testing.assert_close(METHODS[name].fit(support, turned[y], query)(query)[:, turned], expected)


@every_method
def test_one_shot_more_classes_than_features_and_constant_features_have_finite_scores(name):
    for support, y, query, _ in (episodes(1, (1, 1, 1)), episodes(1, (2,) * (D + 2)), episodes(1, (2, 2))):
        assert METHODS[name].fit(support[0], y, query[0])(query[0]).isfinite().all()
    constant = torch.ones(4, D, dtype=torch.double)
    assert METHODS[name].fit(constant, torch.tensor([0, 0, 1, 1]), constant)(constant).isfinite().all()


@every_method
def test_missing_queries_are_refused(name):
    support, y, query, _ = episodes(1)
    if METHODS[name].transductive:
        with pytest.raises(ValueError, match='transductive'): METHODS[name].fit(support[0], y)
    else:
        alone, among = METHODS[name].fit(support[0], y), METHODS[name].fit(support[0], y, query[0])
        torch.testing.assert_close(alone(query[0]), among(query[0]))


@pytest.mark.parametrize('method, words', [
    (LaplacianShot(knn=9), 'knn=9'), (LabelPropagation(k=9), 'k=9'), (PTMAP(), 'BDCSPN'), (RidgeHead(alpha=0.), 'alpha'),
    (SimpleShot(treatment='l3'), "treatment='l3'"), (LaplacianShot(rectify='maybe', knn=1), "rectify='maybe'"),
    (LDAHead(shrinkage=0.), 'shrinkage'), (LogisticHead(C=-1.), 'C=-1'),
    (DistributionCalibration(base_means=torch.zeros(2, D), base_covariances=torch.zeros(2, D, D)), 'k=2')])
def test_settings_that_do_not_fit_are_named(method, words):
    support, y, query, _ = episodes(1, (2, 2, 2))
    with pytest.raises(ValueError, match=words): method.fit(support[0], y, query[0, :2])


@pytest.mark.parametrize('method', [PTMAP.published(), calibration()])
def test_a_power_of_negative_features_is_refused(method):
    support, y, query, _ = episodes(1)
    with pytest.raises(ValueError, match='negative'): method.fit(-support[0], y, query[0])


def test_a_transductive_answer_is_of_its_own_queries_only():
    support, y, query, _ = episodes(1)
    with pytest.raises(ValueError, match='16 queries, found 3'): PTMAP().fit(support[0], y, query[0])(query[0, :3])


def test_pt_map_takes_unbalanced_queries_for_balanced():
    support, y, query, query_y = episodes(8, (5, 5), n_query=30)
    few = torch.cat([torch.arange(30), torch.arange(30, 33)])
    accuracy = lambda method: (method.fit(support, y, query[:, few])(query[:, few]).argmax(-1) == query_y[few]).double().mean()
    assert accuracy(PTMAP()) < accuracy(BDCSPN()) - .1


@pytest.mark.parametrize('method', [PTMAP(), PTMAP.published()])
def test_pt_map_where_a_class_is_far_from_every_query(method):
    "e to the minus its distance is 0 in single precision, as with the 1280 features of an ImageNet encoder"
    g = torch.Generator().manual_seed(0)
    block = lambda c, n: torch.nn.functional.pad(torch.rand(n, 400, generator=g), (400 * c, 800 - 400 * c))
    query = torch.cat([block(0, 6), block(1, 3)])
    scores = method.fit(torch.cat([block(c, 2) for c in range(3)]), torch.arange(3).repeat_interleave(2), query)(query)
    assert scores.isfinite().all() and (scores >= 0).all()
    torch.testing.assert_close(scores.sum(0), torch.full((3,), 3.), rtol=1e-3, atol=1e-3)


def test_ledoit_wolf_is_scikit_learns():
    from sklearn.covariance import ledoit_wolf_shrinkage
    support, y, query = unequal()
    centred = support - torch.stack([support[y == c].mean(0) for c in range(3)])[y]
    by_hand = LDAHead(shrinkage=ledoit_wolf_shrinkage(centred.numpy(), assume_centered=True))
    torch.testing.assert_close(LDAHead().fit(support, y)(query), by_hand.fit(support, y)(query))


def unequal(d=6):
    "A support of 12, 2 and 4 examples in double precision, labels, queries"
    g = torch.Generator().manual_seed(3)
    y = torch.tensor([0] * 12 + [1] * 2 + [2] * 4)
    centres = torch.randn(3, d, dtype=torch.double, generator=g)
    return centres[y] + torch.randn(18, d, dtype=torch.double, generator=g), y, torch.randn(7, d, dtype=torch.double, generator=g)


def test_balanced_heads_are_scikit_learns():
    from sklearn.linear_model import LogisticRegression, Ridge
    support, y, query = unequal()
    weights = (18 / 3 / y.bincount())[y]
    ridge = Ridge(.5).fit(support.numpy(), torch.eye(3)[y].numpy(), sample_weight=weights.numpy())
    ours = RidgeHead(alpha=.5, balanced=True).fit(support, y)(query)
    assert ours.numpy() == pytest.approx(ridge.predict(query.numpy()), abs=1e-8)
    logistic = LogisticRegression(C=2., class_weight='balanced', tol=1e-10, max_iter=5000).fit(support.numpy(), y.numpy())
    ours = LogisticHead(C=2., balanced=True).fit(support, y)(query).softmax(1)
    assert ours.numpy() == pytest.approx(logistic.predict_proba(query.numpy()), abs=1e-5)


def test_logistic_regression_of_many_classes_takes_another_way_to_the_same_minimum(monkeypatch):
    support, y, query = unequal()
    stacked = torch.stack([support, support.flip(0)]), torch.stack([torch.eye(3)[y], torch.eye(3)[y.flip(0)]]).double()
    wanted = LogisticHead(balanced=True).fit(*stacked)(query)
    monkeypatch.setattr('fsc_fastai.adapt.linear.NEWTON', 1)
    found = LogisticHead(balanced=True).fit(*stacked)(query)
    assert not torch.equal(found, wanted)
    torch.testing.assert_close(found.softmax(-1), wanted.softmax(-1), rtol=1e-5, atol=1e-6)
    with torch.inference_mode(): LogisticHead().fit(support, y)(query)
