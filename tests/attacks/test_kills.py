"A few kills of each kind; `make attack` has many"
import os

from tests.attacks import kills


def test_killed_runs_end_as_undisturbed_ones(monkeypatch):
    "But tables, which tests of their own kill at seven moments"
    monkeypatch.setattr(kills, 'KINDS', kinds := [kind for kind in kills.KINDS if kind is not kills.table])
    assert kills.attack(len(kinds), seed=0) == [(kind.__name__, 1, 0, 0) for kind in kinds]


def test_the_attack_sees_a_run_that_does_not_recover(monkeypatch):
    def careless(data, folder):
        with (folder/'results').open('a') as file: file.write('one more')
        os.replace(folder/'results', folder/'results')
    monkeypatch.setattr(kills, 'KINDS', (careless,))
    monkeypatch.setattr(kills, 'prepared', lambda data: data)
    assert kills.attack(3, seed=0) == [('careless', 3, 0, 3)]
