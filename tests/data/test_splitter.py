"Splits whose sets share no class"
import pickle
from pathlib import Path

import pytest

from fsc_fastai.data.splitter import ClassSplitter

LABELS = [f'c{i}' for i in range(10) for _ in range(3)]


def classes_of(splits, labels=LABELS): return [sorted({labels[i] for i in s}) for s in splits]


def test_fractions_of_the_classes_are_disjoint_and_complete():
    splits = ClassSplitter(.2, .3, seed=1).split_labels(LABELS)
    train, valid, test = map(set, classes_of(splits))
    assert (len(train), len(valid), len(test)) == (5, 2, 3) and len(train | valid | test) == 10
    assert sorted(sum(splits, [])) == list(range(30))


def test_seed_draws_the_classes_and_the_order_of_items_does_not_matter():
    valid = {s: tuple(classes_of(ClassSplitter(.3, seed=s).split_labels(LABELS))[1]) for s in range(5)}
    assert len(set(valid.values())) > 1
    assert classes_of(ClassSplitter(.3, seed=2).split_labels(LABELS[::-1]), LABELS[::-1])[1] == list(valid[2])


def test_names_and_predicates():
    train, valid, test = classes_of(ClassSplitter(['c1', 'c2'], lambda c: c > 'c7').split_labels(LABELS))
    assert valid == ['c1', 'c2'] and test == ['c8', 'c9'] and train == ['c0', 'c3', 'c4', 'c5', 'c6', 'c7']


def test_fraction_is_drawn_from_what_is_left():
    for seed in range(5):
        _, valid, test = classes_of(ClassSplitter(.5, ['c0', 'c1', 'c2'], seed=seed).split_labels(LABELS))
        assert len(valid) == 5 and test == ['c0', 'c1', 'c2'] and not set(valid) & set(test)


def test_items_of_no_set_are_left_out():
    assert classes_of(ClassSplitter(['c1'], train=['c5']).split_labels(LABELS)) == [['c5'], ['c1']]


@pytest.mark.parametrize('valid, test, message', [
    (['c1', 'c2', 'c3'], ['c2', 'c3', 'c4'], 'valid and test must not share classes, but do: c2, c3'),
    (['c77'], None, 'no item has the class c77; there are c0, c1'), (1., None, 'valid='), (-.1, None, 'valid=')])
def test_impossible_sets_are_named(valid, test, message):
    with pytest.raises(ValueError, match=message): ClassSplitter(valid, test).split_labels(LABELS)


def test_folders_above_the_classes():
    files = [Path(s, c, '0.jpg') for s, c in (('base', 'a'), ('novel', 'c'), ('val', 'b'), ('base', 'd'))]
    assert ClassSplitter.by_folder()(files) == [[0, 3], [2], [1]]
    assert ClassSplitter.by_folder(test=())(files) == [[0, 3], [2]]
    with pytest.raises(ValueError, match='below training'): ClassSplitter.by_folder('training')(files)
    with pytest.raises(ValueError, match='train and valid must not share classes, but do: a'):
        ClassSplitter.by_folder()([*files, Path('val', 'a', '1.jpg')])


def test_splitters_can_be_pickled():
    for splitter in (ClassSplitter(.2), ClassSplitter.by_folder()):
        assert type(pickle.loads(pickle.dumps(splitter))) is type(splitter)
