"What the examples alone tell: calibrated probabilities, a limit for strangers, sets of classes, right answers that join"
import warnings
from math import sqrt

import numpy as np
import pytest
import torch

from fsc_fastai.adapt import LDAHead
from fsc_fastai.deploy import FewShotClassifier, Preprocess
from fsc_fastai.deploy.conformal import proven_coverage
from fsc_fastai.deploy.held_out import folds_of
from fsc_fastai.methods import ProtoNet

from ..methods.toys import feature_encoder
from .toys import COLOURS, METHODS, classifier, examples, picture


def plain(adapt=None, **kwargs):
    "A classifier of the pixels themselves, without weights"
    images = Preprocess(8, 8, mean=(.5,) * 3, std=(.2,) * 3)
    return FewShotClassifier(ProtoNet(feature_encoder(3, 8), pool='flatten'), images, adapt=adapt, **kwargs)


def clouds(rng, n_way, spread=60.):
    "A function that draws images of given classes, which overlap"
    means = rng.normal(128, 12, (n_way, 8, 8, 3))
    return lambda labels: (means[labels] + rng.normal(0, spread, (len(labels), 8, 8, 3))).clip(0, 255).round().astype(np.uint8)


def episodes(n, n_way=5, n_shot=5, n_query=25, **kwargs):
    "Fitted classifiers, each with new images of its classes and their labels, and with images of others"
    rng = np.random.default_rng(0)
    for _ in range(n):
        draw = clouds(rng, n_way + 5)
        support, query = np.repeat(np.arange(n_way), n_shot), rng.integers(0, n_way, n_query)
        yield (plain(**kwargs).fit(draw(support), support), draw(query), query, draw(rng.integers(n_way, n_way + 5, n_query)))


def error_of(p, y, bins=10):
    "Expected calibration error: confidence against accuracy, in bins of confidence"
    confidence, right = p.max(1), p.argmax(1) == y
    found = np.minimum((confidence * bins).astype(int), bins - 1)
    return sum(abs((confidence - right)[found == b].sum()) for b in range(bins)) / len(y)


def test_folds_have_one_of_each_class():
    member = torch.eye(3)[[0, 0, 0, 1, 1, 2]]
    assert folds_of(member).tolist() == [0, 1, 2, 0, 1, -1]
    many = folds_of(torch.eye(2)[[0] * 25 + [1] * 25])
    assert torch.bincount(many).tolist() == [6] * 5 + [4] * 5


@pytest.mark.parametrize('adapt', [None, LDAHead(treatment='l2')], ids=str)
def test_probabilities_are_calibrated_by_the_examples(adapt):
    found = [(c, c.predict_proba(x), y) for c, x, y, _ in episodes(24, adapt=adapt)]
    y = np.concatenate([y for _, _, y in found])
    calibrated = error_of(np.concatenate([p for _, p, _ in found]), y)
    raw = np.concatenate([(torch.from_numpy(p).log() * c.temperature).softmax(1).numpy() for c, p, _ in found])
    assert {c.calibrated_ for c, _, _ in found} == {'examples'}
    assert calibrated < .09 and error_of(raw, y) > calibrated + .1


@pytest.mark.parametrize('method', METHODS)
def test_fitting_calibrates_every_method_and_leaves_its_scores(method):
    known = classifier(method).fit(*examples())
    assert known.calibrated_ == 'examples' and known.temperature != 1
    scores = known.scores([picture('red', 60)])
    fixed = classifier(method)
    fixed.temperature = 3.
    assert torch.equal(fixed.fit(*examples()).scores([picture('red', 60)]), scores)
    assert (fixed.temperature, fixed.calibrated_) == (3., 'by hand')


def test_one_example_of_each_class_says_that_it_does_not_calibrate():
    with pytest.warns(UserWarning, match='not calibrated, and keep= refuses nothing.*no class has two'):
        known = classifier(keep=.9).fit(*examples(1))
    assert known.calibrated_ is None and known.temperature == 1 and known.limit is None
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # once is enough
        known.fit(*examples(1))
        assert known.predict(picture('red', 60)).label == 'red'
        known.fit(*examples(2))
    assert known.calibrated_ == 'examples' and known.limit > 0


@pytest.mark.parametrize('n_shot, keep', [(5, .9), (5, .95), (3, .9)])
def test_the_share_of_known_images_that_is_kept_is_what_was_asked(n_shot, keep):
    kept, refused = [], []
    for c, x, _, strangers in episodes(20, n_shot=n_shot, keep=keep):
        kept += [o.label is not None for o in c.predict_batch(x)]
        refused += [o.label is None for o in c.predict_batch(strangers)]
    assert np.mean(kept) == pytest.approx(keep, abs=.03)
    assert np.mean(refused) > 1 - keep + .03


def test_strangeness_is_the_distance_from_the_nearest_class_mean():
    rng = np.random.default_rng(0)
    x, y = clouds(rng, 2)(np.array([0, 0, 1, 1])), [0, 0, 1, 1]
    known = plain(keep=.9).fit(x, y)
    unit = lambda images: torch.nn.functional.normalize((torch.tensor(images / 255) - .5).flatten(1), dim=1)
    means = torch.stack([unit(x)[:2].mean(0), unit(x)[2:].mean(0)])
    new = clouds(rng, 2)(np.array([0, 1, 1]))
    assert np.allclose(known.strangeness(new), torch.cdist(unit(new), means).amin(1), atol=1e-5)
    assert [o.strangeness for o in known.predict_batch(new)] == pytest.approx(known.strangeness(new).tolist())
    known.keep = .5
    u, folds = unit(x), (([0, 2], [1, 3]), ([1, 3], [0, 2]))
    held_out = torch.cat([torch.cdist(u[out], u[others]).amin(1) for out, others in folds])
    # a mean of one vector is farther off than one of two will be; half of a symmetric distribution is its mean
    assert known.limit == pytest.approx(held_out.mean().item() * ((1 + 1/2) / (1 + 1))**.5)
    with pytest.raises(ValueError, match='keep=1.5: wanted a share'): plain(keep=1.5)


def test_sets_hold_the_right_class_as_often_as_they_say():
    n, n_query, hits, sizes = 40, 25, [], []
    for c, x, y, _ in episodes(n, n_query=n_query):
        found = c.predict_sets(x, coverage=.9)
        hits += [label in s for s, label in zip(found, y, strict=True)]
        sizes += map(len, found)
    level = found[0].level
    assert level == pytest.approx(1 - 2 / 26) and found[0].guaranteed == pytest.approx(1 - .2 - (1 - 5 / 25) / 6)
    # queries of one episode share its 25 examples, by whose draw the coverage is beta distributed with a = 24, b = 2
    between, within = level * (1 - level) / 27, level * (1 - level) * 26 / 27
    assert np.mean(hits) == pytest.approx(level, abs=2.6 * sqrt((between + within / n_query) / n))
    assert 1 < np.mean(sizes) < 4


def test_a_set_by_hand():
    known = classifier().fit(*examples(4, ['blue', 'red']))
    found = known.predict_set(picture('red', 60), coverage=.8)
    assert found.labels[0] == 'red' and 'red' in found and len(found) == len(found.labels)
    assert list(found.p_values) == ['red', 'blue'] and set(found.p_values.values()) <= {i / 9 for i in range(1, 10)}
    assert found.level == pytest.approx(1 - 1 / 9) and found == known.predict_sets([picture('red', 60)], .8)[0]
    assert known.predict_sets([]) == []
    with pytest.raises(TypeError, match='predict_sets'): known.predict_set([picture('red', 60)])
    with pytest.raises(ValueError, match='coverage=9: wanted a share'): known.predict_set(picture('red', 60), 9)


def test_too_few_examples_give_all_classes_and_say_so():
    known = classifier().fit(*examples(2, ['blue', 'red']))
    with pytest.warns(UserWarning, match='all classes: 9 examples have to be held out, 4 can be'):
        found = known.predict_set(picture('red', 60))
    assert set(found.labels) == {'blue', 'red'} and found.labels[0] == 'red' and found.guaranteed == found.level == 1
    with pytest.warns(UserWarning): known.fit(*examples(1))
    with pytest.warns(UserWarning, match='0 can be .no class has two'): assert len(known.predict_set(picture('red', 60))) == 5


def test_what_is_guaranteed_of_a_class_with_one_example_is_nothing():
    images, labels = examples(6, ['blue', 'red'])
    known = classifier().fit([*images, picture('grey', 0)], [*labels, 'grey'])
    assert known.predict_set(picture('red', 60)).guaranteed == 0
    assert proven_coverage([10], .1) == pytest.approx(.8), 'one fold: twice a p-value would be enough'
    assert proven_coverage([5] * 4 + [3], .1) == pytest.approx(1 - 2 * (.1 * 24 + 4) / 28)


def test_the_right_answer_joins_the_examples(tmp_path):
    known = classifier(keep=.9).fit(*examples(3, ['blue', 'green', 'red']))
    known.correct(picture('yellow', 5), 'red')
    assert known.shots_ == dict(blue=3, green=3, red=4)
    known.correct(picture('grey', 5), 'grey').correct(picture('grey', 6), 'grey')
    assert known.predict(picture('grey', 60)).label == 'grey'
    loaded = FewShotClassifier.from_pretrained(known.save(tmp_path))
    assert loaded.shots_ == known.shots_ and loaded.predict(picture('grey', 60)) == known.predict(picture('grey', 60))
    with pytest.raises(TypeError, match='add_class'): known.correct([picture('red', 1)] * 2, 'red')


@pytest.mark.parametrize('method', ['proto', 'relation'])
def test_a_bundle_keeps_what_the_examples_told(method, tmp_path):
    known = classifier(method, keep=.8).fit(*examples(4))
    loaded = FewShotClassifier.from_pretrained(known.save(tmp_path))
    images = [picture(c, 60) for c in COLOURS]
    assert (loaded.keep, loaded.calibrated_, loaded.temperature) == (.8, 'examples', known.temperature)
    assert loaded.limit == pytest.approx(known.limit, rel=1e-6)
    assert loaded.predict_batch(images) == known.predict_batch(images)
    assert loaded.predict_sets(images) == known.predict_sets(images)
    loaded.add_class([picture('red', i) for i in range(30, 34)], 'red')
    assert loaded.temperature != known.temperature, 'more examples tell more'


def test_an_encoder_that_was_adapted_to_the_examples_has_none_to_hold_out():
    known = classifier(adapt='finetune:steps=1')
    with pytest.warns(UserWarning, match='the encoder was adapted to all of them'): known.fit(*examples(3))
    assert known.calibrated_ is None
    with pytest.warns(UserWarning, match='adapted to all'): assert len(known.predict_set(picture('red', 60))) == 5


def test_a_report_of_how_honest_the_answers_are():
    known, x, y, strangers = next(episodes(1, n_query=60, keep=.9))
    found, answers, sets = known.report(x, y, strangers=strangers, coverage=.8), known.predict_batch(x), known.predict_sets(x, .8)
    others = known.predict_batch(strangers)
    assert found.accuracy == np.mean([o.nearest == label for o, label in zip(answers, y)]) == known.score(x, y)
    assert found.confidence == pytest.approx(np.mean([o.confidence for o in answers]))
    assert found.calibration_error == pytest.approx(error_of(known.predict_proba(x), y, 15))
    assert (found.kept, found.refused) == tuple(np.mean([(o.label is None) == strange for o in found_]) for strange, found_ in
                                                ((False, answers), (True, others)))
    below = np.subtract.outer([o.strangeness for o in answers], [o.strangeness for o in others]) < 0
    assert found.auroc == pytest.approx(below.mean()) and found.auroc > .6
    assert found.coverage == np.mean([label in o for o, label in zip(sets, y)])
    assert (found.set_size, found.level) == (np.mean([len(o) for o in sets]), sets[0].level)
    assert np.isnan(known.report(x, y).auroc) and np.isnan(known.report(x, y).refused)
    with pytest.raises(ValueError, match='no class 9: pass images of other classes as strangers'): known.report(x, [9] * len(x))


def test_half_the_bytes_give_nearly_the_same_answers(tmp_path):
    known = classifier(keep=.9, n_classes=0).fit(*examples(4))
    size = lambda folder: next(folder.glob('tensors-*')).stat().st_size
    whole, half = known.save(tmp_path/'whole'), known.save(tmp_path/'half', half=True)
    assert size(half) < .52 * size(whole)
    images = [picture(c, 60) for c in COLOURS]
    loaded = FewShotClassifier.from_pretrained(half)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert np.allclose(loaded.predict_proba(images), known.predict_proba(images), atol=.01)
    again = loaded.save(tmp_path/'again')
    assert size(again) == size(whole)
    assert FewShotClassifier.from_pretrained(again).predict_batch(images) == loaded.predict_batch(images)
