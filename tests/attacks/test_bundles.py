"A short run of the attack on saved classifiers; and the attack notices a hole that is put in"
import sys

import pytest

from fsc_fastai.deploy import layout

from .bundles import KINDS, outcomes
from .table import rows

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='measures memory by /proc')


def test_no_changed_bundle_does_harm():
    table = rows(outcomes(3 * len(KINDS), seed=0, seconds=float('inf')))
    assert [(kind, tried, failed) for kind, tried, _, failed in table] == [(kind, 3, 0) for kind in KINDS]
    assert sum(refused for _, _, refused, _ in table) > 20


@pytest.mark.parametrize('module, name, put, kind', [
    (layout.TensorFile, 'check', lambda *args, **kwargs: None, 'tensors that lie'),
    (layout, 'SafetensorError', KeyError, 'the header of the tensors'),
])
def test_a_hole_would_be_noticed(monkeypatch, module, name, put, kind):
    monkeypatch.setattr(module, name, put)
    monkeypatch.setattr('tests.attacks.bundles.KINDS', {kind: KINDS[kind]})
    (_, tried, _, failed), = rows(outcomes(8, seed=0, seconds=float('inf')))
    assert tried == 8 and failed
