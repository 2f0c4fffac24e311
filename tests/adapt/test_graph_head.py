"A graph network with a graph for each query gives its scores by less work"
import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fsc_fastai.adapt import graph_head
from fsc_fastai.adapt.graph_head import GraphHead
from fsc_fastai.encode.encoder import Encoder
from fsc_fastai.methods import GNNNet
from fsc_fastai.methods.graph import GraphNet
from fsc_fastai.methods.head import Head

C, SIDE = 6, 3
SHOTS = [(1, 1), (1, 1, 1), (3, 3), (4, 1, 2), (12, 1, 3), (2,) * 7]
close = partial(assert_close, rtol=1e-10, atol=1e-11)


def gnn_net(n_way, cls=GNNNet, n_hidden=2, **kwargs):
    "In double precision, with values of either sign everywhere"
    torch.manual_seed(0)
    model = cls(Encoder(nn.Identity(), SIDE, C), n_way, n_features=7, width=10, **kwargs)
    model.gnn = GraphNet(7 + n_way, n_way, 10, n_hidden)
    for p in model.double().parameters(): nn.init.normal_(p, std=.5)
    return model.eval()


def maps(n, seed=0): return torch.randn(n, C, SIDE, SIDE, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def fitted(shots, cls=GNNNet, **kwargs):
    "A head and some queries"
    y = torch.arange(len(shots)).repeat_interleave(torch.tensor(shots))
    return gnn_net(len(shots), cls, **kwargs).head(maps(len(y)), y, 'support'), maps(9, 1)


@pytest.mark.parametrize('n_hidden', range(5))
@pytest.mark.parametrize('shots', SHOTS, ids=str)
def test_the_scores_are_those_of_the_network(shots, n_hidden):
    head, query = fitted(shots, n_hidden=n_hidden)
    scores = head(query)
    close(scores, Head.forward(head, query))
    close(torch.cat([head(q[None]) for q in query]), scores)
    assert type(head) is GraphHead and head(query[:0]).shape == (0, len(shots))


def test_it_does_less_than_the_network(monkeypatch):
    "The network itself is not asked"
    head, query = fitted((2, 2, 2))
    monkeypatch.setattr(GraphNet, 'forward', None)
    assert head(query).shape == (9, 3)


@pytest.mark.parametrize('n', [1, 4, 8, 9])
def test_a_head_splits_its_queries_anywhere(n, monkeypatch):
    head, query = fitted((2, 2))
    together = head(query)
    monkeypatch.setattr(graph_head, 'GRAPHS', n)
    close(head(query), together)


def test_another_fit_and_another_precision():
    head, query = fitted((2, 2, 2))
    first = head(query)
    head.fit(maps(3, 5), torch.arange(3))
    assert not torch.allclose(head(query), first)
    close(head(query), Head.forward(head, query))
    single = copy.deepcopy(head).float()
    assert single(query.float()).dtype == torch.float32
    assert_close(single(query.float()).double(), head(query), rtol=1e-3, atol=1e-4)


def test_gradients_pass():
    head, f = fitted((2, 2))
    f.requires_grad_()
    found, = torch.autograd.grad(head(f).square().sum(), f)
    wanted, = torch.autograd.grad(Head.forward(head, f).square().sum(), f)
    assert found.any()
    close(found, wanted)


class Classifies(GNNNet):
    def classify(self, f_p): return -super().classify(f_p)


class Traces(GNNNet):
    def classify_with_trace(self, f_p):
        scores, trace = super().classify_with_trace(f_p)
        return -scores, trace


class Processes(GNNNet):
    def process(self, f_support, support_y, f_query): return super().process(-f_support, support_y, -f_query)


class Whole(GNNNet):
    def forward_head(self, *args): return -super().forward_head(*args)


@pytest.mark.parametrize('cls', [Classifies, Traces])
def test_a_way_of_classifying_of_one_s_own(cls):
    head, query = fitted((2, 1, 2), cls)
    close(head(query), -fitted((2, 1, 2))[0](query))


@pytest.mark.parametrize('cls', [Processes, Whole])
def test_graphs_of_one_s_own_hold_one_query_each(cls):
    head, query = fitted((2, 1, 2), cls)
    assert type(head) is Head and 'tells 3 classes apart, found 4' in head.problem(4)
    scores = head(query)
    assert scores.shape == (9, 3)
    for q, row in zip(query, scores): close(head.model.forward_head(head.support, head.member, q[None])[0], row)
