"Which images make an episode"
from collections import Counter

import numpy as np
import pytest

from fsc_fastai.data.sampler import EpisodeSampler

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 12))


def test_exact_ways_shots_and_queries_in_the_order_of_the_classes():
    support, query, classes = EpisodeSampler(LABELS, 4, 3, 5).episode(0)
    assert LABELS[support].tolist() == np.repeat(classes, 3).tolist()
    assert LABELS[query].tolist() == np.repeat(classes, 5).tolist()
    assert len(set(classes)) == 4


def test_no_image_twice_even_when_a_class_is_used_up():
    sampler = EpisodeSampler(LABELS, 10, 5, 7)
    for k in range(20):
        support, query, _ = sampler.episode(k)
        assert sorted(support + query) == list(range(120))


def test_episode_depends_on_seed_epoch_and_number_alone():
    first, again = EpisodeSampler(LABELS, seed=3, n_query=2), EpisodeSampler(LABELS, seed=3, n_query=2)
    forwards = [first.episode(k, e) for e in range(2) for k in range(5)]
    assert forwards == [again.episode(k, e) for e in reversed(range(2)) for k in reversed(range(5))][::-1]
    assert len({tuple(o.support) for o in [*forwards, EpisodeSampler(LABELS, seed=4, n_query=2).episode(0)]}) == 11


def test_every_class_and_image_is_equally_likely():
    sampler = EpisodeSampler(LABELS, 5, 1, 1)
    drawn = [sampler.episode(k) for k in range(2000)]
    classes, images = Counter(c for e in drawn for c in e.classes), Counter(i for e in drawn for i in e.support)
    assert all(abs(n - 1000) < 120 for n in classes.values()) and len(classes) == 10
    assert all(40 < n < 140 for n in images.values()) and len(images) == 120


def test_counts_vary_within_their_ranges():
    sampler = EpisodeSampler(LABELS, n_way=(2, 4), n_shot=(1, 3), n_query=(2, 3))
    drawn = [sampler.episode(k) for k in range(200)]
    assert {len(e.classes) for e in drawn} == {2, 3, 4}
    assert {len(e.support)//len(e.classes) for e in drawn} == {1, 2, 3}
    assert {len(e.query)//len(e.classes) for e in drawn} == {2, 3}


def test_small_classes_are_left_out_on_request():
    sampler = EpisodeSampler([0]*9 + [1]*3 + [2]*9, 2, 2, 4, drop_small=True)
    assert sampler.dropped == {1: 3} and sampler.episode(0).classes in [(0, 2), (2, 0)]


FEW = dict(labels=[0]*9 + [1]*3 + [2]*9 + [3]*2, n_shot=2, n_query=4)


@pytest.mark.parametrize('settings, message', [
    (dict(n_way=11), 'n_way=11, but this dataset has 10 classes'),
    (dict(n_way=0), 'n_way=0: at least 1'),
    (dict(n_shot=0), 'n_shot=0: at least 1'),
    (dict(n_query=-1), 'n_query=-1: at least 1'),
    (dict(n_way=(4, 2)), 'lowest first'),
    (dict(seed=-1), 'seed=-1'),
    *((dict(n_way=count), 'n_way=') for count in (2.5, '5', True, (1, 2, 3))),
    (FEW | dict(vocab=['cat', 'dog', 'hen', 'owl']), r"2 classes .* 2 \+ 4 = 6 images \('dog': 3, 'owl': 2\)"),
    (FEW | dict(n_way=3, drop_small=True), r"n_way=3, but .* 2 classes \(0, 2\), after leaving out .*'1': 3"),
])
def test_impossible_settings_are_named(settings, message):
    with pytest.raises((ValueError, TypeError), match=message): EpisodeSampler(**(dict(labels=LABELS, n_query=2) | settings))
