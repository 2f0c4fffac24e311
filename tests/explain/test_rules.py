"Each rule on numbers worked out by hand"
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fsc_fastai.explain import LRP, AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from fsc_fastai.explain.rules import divide

X = torch.tensor([[1., 2., -1.]])
W = torch.tensor([[1., -1., 2.], [2., 1., -1.]])  # outputs 1 − 2 − 2 = −3 and 2 + 2 + 1 = 5
R = torch.tensor([[6., 10.]])


def linear(rule, x=X, weight=W, bias=None, start=R, before=(), **kwargs):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data = weight
    if bias is not None: layer.bias.data = bias
    return LRP(composite={nn.Linear: rule}, **kwargs).relevance(nn.Sequential(*before, layer), x, start)


def convolution(rule, **kwargs):
    "The same sums of one pixel, by a layer of few channels"
    layer = nn.Conv2d(3, 2, 1, bias=False)
    layer.weight.data = W[:, :, None, None]
    found = LRP(composite={nn.Conv2d: rule}, **kwargs).relevance(layer, X[:, :, None, None], R[:, :, None, None])
    return found[..., 0, 0]


def folded(rule, bias, x=X, before=()):
    "A linear layer, and a batch norm behind it, which is folded into it and brings the bias (`bias`, −1)"
    return _folded(rule, bias, nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2, eps=1e-12), W, x, R, before)


def folded_convolution(rule, bias):
    "Likewise a layer of few channels"
    layer, norm, add = nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2, eps=1e-12), (..., None, None)
    return _folded(rule, bias, layer, norm, W[add], X[add], R[add])[..., 0, 0]


def _folded(rule, bias, layer, norm, weight, x, start, before=()):
    layer.weight.data, norm.bias.data = weight, torch.tensor([bias, -1.])
    return LRP(composite={type(layer): rule}, norm='fold').relevance(nn.Sequential(*before, layer, norm).eval(), x, start)


@pytest.mark.parametrize('rule,expected', [
    # contributions (1, −2, −2) of −3 and (2, 2, 1) of 5
    (Epsilon(0.), [[-2 + 4, 4 + 4, 4 + 2]]),
    (Epsilon(1.), [[6/-4 + 10*2/6, -12/-4 + 10*2/6, -12/-4 + 10/6]]),
    # positive contributions 1 of 1 and (2, 2, 1) of 5; negative ones (−2, −2) of −4
    (ZPlus(), [[6 + 4, 4, 2]]),
    (AlphaBeta(1.), [[6 + 4, 4, 2]]),
    (AlphaBeta(2., 1.), [[12 + 8, 8 - 3, 4 - 3]]),
    (AlphaBeta(2.), [[12 + 8, 8 - 3, 4 - 3]]),
    # positive contributions count twice: (2, −2, −2) of −2 and (4, 4, 2) of 10
    (Gamma(1., 0.), [[-6 + 4, 6 + 4, 6 + 2]]),
    (Gamma(0., 0.), [[2, 8, 6]]),
    (Gamma(1., 1.), [[-4 + 40/11, 4 + 40/11, 4 + 20/11]]),
    (Flat(), [[16/3, 16/3, 16/3]]),
    (WSquare(), [[6/6 + 10*4/6, 6/6 + 10/6, 6*4/6 + 10/6]]),
    # x·w − l·w⁺ − h·w⁻ with l = −2, h = 3: (3, 1, 2) of 6 and (6, 4, 4 − ...) of 14
    (ZBox(-2., 3., 0.), [[6*3/6 + 10*6/14, 6*1/6 + 10*4/14, 6*2/6 + 10*4/14]]),
    (ZBox(-2., 3., 1.), [[6*3/7 + 10*6/15, 6*1/7 + 10*4/15, 6*2/7 + 10*4/15]]),
], ids=repr)
@pytest.mark.parametrize('form', ['R', 'g'])
@pytest.mark.parametrize('layer', [linear, convolution])
def test_by_hand(layer, rule, expected, form):
    assert_close(layer(rule, form=form), torch.tensor(expected, dtype=torch.float32))


def test_two_layers_by_hand():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    net[0].weight.data, net[2].weight.data = torch.tensor([[1., 1.], [1., -2.]]), torch.tensor([[2., 3.]])
    # hidden (3, 0), output 6: all relevance goes through the first unit, to which (1, 2) contribute
    R = LRP(eps=1e-9).relevance(net, torch.tensor([[1., 2.]]), torch.tensor([[6.]]))
    assert_close(R, torch.tensor([[2., 4.]]))


@pytest.mark.parametrize('rule', [AlphaBeta(1.), AlphaBeta(2.), Gamma(1., 1.)], ids=repr)
def test_one_weight_is_enough_behind_a_relu(rule):
    "The short cut for inputs that cannot be negative gives what the general rule gives"
    assert_close(linear(rule, X.abs(), before=[nn.ReLU()]), linear(rule, X.abs()))
    assert_close(folded(rule, 2., X.abs(), before=[nn.ReLU()]), folded(rule, 2., X.abs()))


def test_bias_absorbs_relevance_only_where_folded():
    assert_close(linear(Epsilon(0.), bias=torch.tensor([3., -4.])), linear(Epsilon(0.)))


@pytest.mark.parametrize('rule,bias,expected', [
    # outputs −3 + 2 and 5 − 1; positive parts 1 + 2 and 5; favoured −2 + 4 and 10 − 1
    (Epsilon(0.), 2., [[-6 + 5, 12 + 5, 12 + 2.5]]),
    (AlphaBeta(1.), 2., [[2 + 4, 4, 2]]),
    (Gamma(1., 0.), 2., [[6 + 40/9, -6 + 40/9, -6 + 20/9]]),
    # positive parts 1 and 5, twice; a negative one −4 − 4
    (AlphaBeta(2.), -4., [[12 + 8, 8 - 12/8, 4 - 12/8]]),
    # favoured −2 + 4 and 10 − 1, and ε
    (Gamma(1., 1.), 2., [[12/3 + 40/10, -12/3 + 40/10, -12/3 + 20/10]]),
], ids=repr)
@pytest.mark.parametrize('layer', [folded, folded_convolution])
def test_folded_bias_takes_its_share(layer, rule, bias, expected):
    "It absorbs relevance"
    assert_close(layer(rule, bias), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize('form', ['R', 'g'])
def test_a_function_is_a_rule(form):
    "Of a layer, its input and the relevance of its output to c with R(x) = x·c"
    by_hand = lambda layer, x, R: layer.T(layer.share(R, layer.z), layer.weight)
    assert_close(linear(by_hand, form=form), linear(Epsilon(0.)))


@pytest.mark.parametrize('rule', [Epsilon(), AlphaBeta(1.), AlphaBeta(2.), Gamma(), ZBox(0., 0.), WSquare()], ids=repr)
@pytest.mark.parametrize('form', ['R', 'g'])
def test_nothing_contributes(rule, form):
    "A zero input and dead units neither divide by zero nor make relevance"
    found = linear(rule, torch.zeros(1, 3), torch.zeros(2, 3), form=form)
    assert_close(found, torch.zeros(1, 3))


def test_divide_in_half_precision():
    z = torch.tensor([0., -0., 6e-8, -3.], dtype=torch.half)
    found = divide(torch.ones(4, dtype=torch.half), z, 1e-3)
    assert found.isfinite().all() and found[:2].eq(0).all() and found[3] < 0


def test_gamma_joins_epsilon_and_z_plus():
    assert_close(linear(Gamma(1e6, 0.), X.abs()), linear(ZPlus(), X.abs()), rtol=1e-4, atol=1e-4)


def test_box_rule_conserves():
    x = torch.rand(1, 3) * 5 - 2
    assert_close(linear(ZBox(torch.full((3,), -2.), 3., 0.), x).sum(), R.sum())
