"A few kills of each kind; `make attack` has many"
import os

from tests.attacks import kills
from tests.attacks.table import rows


def test_killed_runs_end_as_undisturbed_ones(monkeypatch):
    "Of every kind but tables, which `test_interrupted.py` kills at seven moments"
    monkeypatch.setattr(kills, 'KINDS', kinds := [kind for kind in kills.KINDS if kind is not kills.table])
    assert rows(kills.outcomes(len(kinds), seed=0)) == [(kind.__name__, 1, 0, 0) for kind in kinds]


def test_the_attack_sees_a_run_that_does_not_recover(monkeypatch):
    def careless(data, folder):
        with (folder/'results').open('a') as file: file.write('one more')
        os.replace(folder/'results', folder/'results')
    monkeypatch.setattr(kills, 'KINDS', (careless,))
    monkeypatch.setattr(kills, 'prepared', lambda data: data)
    assert rows(kills.outcomes(3, seed=0)) == [('careless', 3, 0, 3)]
