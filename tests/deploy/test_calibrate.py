"Probabilities and a threshold from episodes of held-out classes"
import numpy as np
import pytest
import torch

from fsc_fastai.deploy.calibrate import measured
from fsc_fastai.deploy.held_out import best_temperature

from .toys import COLOURS, classifier, examples, picture


def test_calibration_keeps_what_it_promises():
    known = classifier().fit(*examples(colours=['blue', 'red']))
    found = known.calibrate(*examples(10, first=100), keep=.9, n_episodes=40)
    assert known.temperature == found.temperature and known.reject == found.threshold
    assert found.accepted == pytest.approx(.9, abs=.01) and found.accuracy > .95
    assert found.auroc > .6 and 0 < found.threshold < 1
    # strange colours are refused more often than known ones
    refused = lambda *colours: np.mean([known.predict(picture(c, i)).label is None for c in colours for i in range(200, 220)])
    assert refused('green', 'grey', 'yellow') > refused('blue', 'red') + .2


def test_calibration_is_the_same_each_time():
    found = [classifier().calibrate(*examples(8), n_way=2, n_shot=2, n_query=3, n_episodes=20) for _ in range(2)]
    assert found[0] == found[1] and 1e-3 < found[0].temperature < 1e4


def test_more_confident_scores_ask_for_a_higher_temperature():
    g = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(2000, 3, generator=g, dtype=torch.float64)
    noise = torch.rand(scores.shape, generator=g, dtype=torch.float64)
    target = (scores / 1.5 - noise.log().neg().log()).argmax(1)  # drawn by probabilities at temperature 1.5
    found = best_temperature(scores, target, .01)
    assert found == pytest.approx(1.5, rel=.2)
    assert best_temperature(10 * scores, target, .01) == pytest.approx(10 * found, rel=1e-2)


def test_what_a_threshold_does_by_hand():
    known = torch.tensor([[.9, .1], [.8, .2], [.7, .3], [.4, .6]], dtype=torch.float64).log()
    other = torch.tensor([[.5, .5], [.55, .45], [.95, .05]], dtype=torch.float64).log()
    found = measured(known, other, torch.tensor([0, 0, 1, 1]), temperature=1., keep=.75)
    assert found.threshold == pytest.approx(.675)  # a quarter of the way up .6, .7, .8, .9
    assert (found.accepted, found.accuracy) == (.75, .75) and found.refused == pytest.approx(2/3)
    assert found.auroc == pytest.approx(8/12)  # pairs in which the known image is the surer one


def test_calibration_leaves_the_examples_alone():
    known = classifier('relation').fit(*examples())
    before = known.predict_proba([picture('red', 60)]).argmax(), known.scores([picture('red', 60)])
    known.calibrate(*examples(8, first=30), n_way=3, n_shot=2, n_query=2, n_episodes=5)
    assert known.predict_proba([picture('red', 60)]).argmax() == before[0]
    assert (known.scores([picture('red', 60)]) == before[1]).all()


@pytest.mark.parametrize('act, message', [
    (lambda c: c.calibrate(*examples(8)), '5 known classes and another one at least are needed, found 5'),
    (lambda c: c.calibrate(*examples(8), n_way=2, n_shot=7), 'fewer than n_shot'),
    (lambda c: c.calibrate(*examples(8), n_way=2, keep=1.), 'keep=1.0'),
    (lambda c: c.calibrate(*examples(8, ['red']), n_way=1), 'found 1'),
])
def test_errors_name_what_is_wrong(act, message):
    with pytest.raises(ValueError, match=message): act(classifier().fit(*examples(colours=COLOURS)))
