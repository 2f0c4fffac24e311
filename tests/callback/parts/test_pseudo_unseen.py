"Which pseudo-unseen domain has its turn, and which of its episodes"
import pytest

from fsc_fastai.callback.parts.pseudo_unseen import PseudoUnseen


class Numbered:
    "Episodes (name, pass, number); the pass is whatever `epoch` was set to"
    def __init__(self, name, n): self.name, self.n, self.epoch = name, n, 0
    def __iter__(self): return iter([(self.name, self.epoch, k) for k in range(self.n)])


def epoch(domains, steps):
    domains.start_epoch()
    drawn = [list(domains.episodes(step)) for step in range(steps)]
    domains.end_epoch()
    return drawn


def names(drawn): return [[name for name, *_ in step] for step in drawn]


def domains(every, **kwargs): return PseudoUnseen([Numbered('a', 3), Numbered('b', 2)], every, **kwargs)


def test_an_epoch_has_one_domain_and_another_epoch_may_have_the_other():
    o = domains('epoch')
    epochs = [names(epoch(o, 4)) for _ in range(12)]
    assert all(len({step[0] for step in e}) == 1 for e in epochs) and {e[0][0] for e in epochs} == {'a', 'b'}
    assert len(o) == 1


def test_each_step_draws_its_domain():
    steps = names(epoch(domains('step'), 40))
    assert 8 < sum(step == ['a'] for step in steps) < 32
    assert steps != names(epoch(domains('step', seed=1), 40))


def test_all_means_every_domain_in_every_step():
    o = domains('all')
    assert names(epoch(o, 3)) == [['a', 'b']] * 3 and len(o) == 2


def test_a_domain_never_repeats_a_pass():
    o = PseudoUnseen([Numbered('a', 3)])
    drawn = [step[0] for e in range(3) for step in epoch(o, 5)]
    assert len(set(drawn)) == 15 and drawn[:4] == [('a', 0, 0), ('a', 0, 1), ('a', 0, 2), ('a', 1, 0)]


@pytest.mark.parametrize('every', ['epoch', 'step', 'all'])
def test_goes_on_from_its_state(every):
    a, b = domains(every), domains(every)
    for _ in range(3): epoch(a, 4)
    b.load_state_dict(a.state_dict())
    assert epoch(a, 4) == epoch(b, 4)


def test_names_come_from_a_dict():
    with pytest.raises(ValueError, match='pseudo-unseen domain greek gives no episodes'):
        epoch(PseudoUnseen({'greek': Numbered('', 0)}), 1)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match='pseudo_unseen is empty'): PseudoUnseen([])
    with pytest.raises(TypeError, match='pseudo-unseen domain 0 is a int'): PseudoUnseen([3])
    with pytest.raises(ValueError, match="every='never': choose from"): domains('never')
