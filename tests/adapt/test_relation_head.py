"A relation network whose first convolution runs once per image gives the scores of the method, whatever the size of the maps"
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fsc_fastai.adapt.relation_head import ConvolvedHead, RelationHead
from fsc_fastai.methods import RelationNet

C = 6
SIDES = [(1, 1), (2, 2), (3, 3), (2, 3), (4, 4), (5, 7), (9, 9), (10, 10), (13, 12)]
"Of maps: pools round up below 4, the convolutions go without padding from 10 on"


def relation_net(side, trained_on=None, cls=RelationNet):
    "In double precision, with weights of either sign everywhere"
    encoder = nn.Identity()
    encoder.out_shape = (C, *(trained_on or side))
    model = cls(encoder).double().eval()
    for p in model.parameters(): nn.init.normal_(p)
    return model


def maps(n, side): return torch.randn(n, C, *side, dtype=torch.double)


@pytest.mark.parametrize('side,trained_on', [(s, s) for s in SIDES] + [(s, (4, 6)) for s in ((3, 3), (5, 5), (8, 8))], ids=str)
@pytest.mark.parametrize('shots', [(1, 1, 1), (3, 3), (4, 1, 2)], ids=str)
def test_the_scores_are_those_of_the_method(side, trained_on, shots):
    model = relation_net(side, trained_on)
    f, n = maps(sum(shots) + 7, side), sum(shots)
    y = torch.repeat_interleave(torch.arange(len(shots)), torch.tensor(shots))
    wanted, head = model.forward_head(f[:n], y, f[n:]), model.head()
    compact = head.compact(f)
    assert type(head) is ConvolvedHead and len(compact) == len(f) and head.compact(compact) is compact
    assert_close(head.fit(compact[:n], y)(compact[n:]), wanted)
    assert torch.equal(head.fit(f[:n], y)(f[n:]), wanted)


@pytest.mark.parametrize('side,trained_on', [(s, s) for s in SIDES] + [((3, 3), (4, 6))], ids=str)
@pytest.mark.parametrize('shots', [(1, 1, 1), (4, 1, 2)], ids=str)
def test_fixed_statistics_are_those_of_all_pairs(side, trained_on, shots):
    "As of the head that knows nothing of the module's parts"
    model, n = relation_net(side, trained_on), sum(shots)
    f, y = maps(n + 7, side), torch.repeat_interleave(torch.arange(len(shots)), torch.tensor(shots))
    head = model.head(f[:n], y, statistics='support')
    assert type(head) is ConvolvedHead
    assert_close(head(f[n:]), RelationHead(model, 'support').fit(f[:n], y)(f[n:]))
    assert_close(head(f[n:n + 1]), head(f[n:])[:1])


@pytest.mark.parametrize('statistics,times', [('batch', 0), ('support', 1)])
def test_the_first_convolution_runs_once_per_image(statistics, times, monkeypatch):
    "In `compact`, or where a query comes to a fixed support"
    head, y, convolved = relation_net((3, 3)).head(statistics=statistics), torch.arange(3), []
    f = head.compact(maps(8, (3, 3)))
    of_support, of_query, of_pair = head.kernels
    def counted(x):
        convolved.extend(x)
        return of_query(x)
    monkeypatch.setattr(ConvolvedHead, 'kernels', (of_support, counted, of_pair))
    for query in (f[3:], f[4:]): assert head.fit(f[:3], y)(query).shape == (len(query), 3)
    assert len(convolved) == times * (5 + 4)


def test_weights_of_another_type_are_read_anew():
    model, f, y = relation_net((3, 3)), maps(7, (3, 3)), torch.arange(3)
    head = model.head(f[:3], y, statistics='support')
    wanted = head(f[3:])
    assert_close(head.float()(f[3:].float()), wanted.float(), rtol=1e-3, atol=1e-3)
    assert_close(head.double().fit(f[:3], y)(f[3:]), wanted, rtol=1e-3, atol=1e-3)


def test_gradients_pass():
    model, f, y = relation_net((3, 3)), maps(7, (3, 3)).requires_grad_(), torch.arange(3)
    head = model.head()
    compact = head.compact(f)
    found, = torch.autograd.grad(head.fit(compact[:3], y)(compact[3:]).square().sum(), f)
    wanted, = torch.autograd.grad(model.forward_head(f[:3], y, f[3:]).square().sum(), f)
    assert found.any()
    assert_close(found, wanted)


class Classifies(RelationNet):
    def classify(self, f_p): return -super().classify(f_p)


class Whole(RelationNet):
    def forward_head(self, *args): return -super().forward_head(*args)


@pytest.mark.parametrize('cls', [Classifies, Whole])
def test_a_way_of_one_s_own_is_kept(cls):
    model, f, y = relation_net((3, 3), cls=cls), maps(4, (3, 3)), torch.arange(2)
    head = model.head(f[:2], y)
    assert type(head) is not ConvolvedHead and torch.equal(head(f), model.forward_head(f[:2], y, f))


def test_maps_that_are_too_small_are_refused_as_by_the_method():
    head, small = relation_net((10, 10)).head(), maps(2, (6, 6))
    compact = head.compact(small)
    with pytest.raises(ValueError, match='8×8 at least, found 6×6'): head.fit(compact, torch.arange(2))(compact)
    head = relation_net((10, 10)).head(maps(2, (10, 10)), torch.arange(2), statistics='support')
    with pytest.raises(ValueError, match='8×8 at least, found 6×6'): head(small)
