"The list of mistakes is up to date: each still fits its file once, and its tests are there (`make mutants` tries them)"
from pathlib import Path

import pytest

from .mutations import MUTATIONS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize('mutation', MUTATIONS, ids=lambda m: m.what)
def test_mutation_still_fits(mutation):
    text = (ROOT/mutation.file).read_text(encoding='utf-8')
    assert text.count(mutation.old) == 1, f'{mutation.file} has changed: {mutation.old!r} stands there no longer, or twice'
    assert mutation.new != mutation.old
    assert all((ROOT/test.split('::')[0]).exists() for test in mutation.tests.split())


def test_every_rule_has_a_mistake():
    from fsc_fastai.explain import rules
    listed = ' '.join(m.what for m in MUTATIONS)
    names = {'Epsilon': 'ε-rule', 'AlphaBeta': 'α-β', 'ZPlus': 'z⁺', 'Gamma': 'γ', 'ZBox': 'z^B', 'Flat': 'flat', 'WSquare': 'w²'}
    assert set(names) == set(rules.__all__) - {'Layer', 'Rule', 'divide'}
    for name in names.values(): assert name in listed
