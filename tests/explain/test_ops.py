"Operations by whatever name, argument or order they are called: relevance arrives, in full, where it belongs"
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fsc_fastai.explain.engine import trace
from fsc_fastai.explain.settings import Settings

FORMS = pytest.mark.parametrize('form', ['R', 'g'])


def relevance(net, *inputs, R=None, form='R', eps=0.):
    run = trace(net, *inputs, settings=Settings(form=form, eps=eps))
    found = run.relevance(run.out.detach() if R is None else R)
    return found[0] if len(found) == 1 else found


def values(*shape): return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).double() + .5


C = values(3, 4) + 1
ELEMENTWISE = {  # all relevance of an entry stays with it
    '1 / x': lambda x: 1 / x, 'c / x': lambda x: C / x, 'div': lambda x: torch.div(C, x),
    'div, numbers': lambda x: torch.div(x, 3.), 'true_divide': lambda x: torch.true_divide(C, x),
    'rtruediv': lambda x: x.__rtruediv__(C), 'reciprocal': torch.reciprocal, 'method': lambda x: x.reciprocal(),
    'in place': lambda x: x.clone().reciprocal_(), 'x / c': lambda x: x / C, 'to the -1': lambda x: x ** -1,
    '2 to the x': lambda x: 2 ** x, 'c to the x': lambda x: torch.pow(C, x), 'number to the x': lambda x: torch.pow(2., x),
    'x to the c': lambda x: x ** C, 'float_power': lambda x: torch.float_power(x, 2),
    'rounded': lambda x: torch.div(3 * x, 1.5, rounding_mode='floor'), 'floor': lambda x: torch.floor(3 * x),
    '//': lambda x: 7 * x // 1.5, 'c // x': lambda x: 7 * C // x, 'number // x': lambda x: 7 // x,
    'remainder': lambda x: (5 * x) % 2., 'exp2': torch.exp2, 'sin': torch.sin, 'erf': torch.erf,
    'clip': lambda x: x.clip(.6, 3), 'nan_to_num': torch.nan_to_num, 'where': lambda x: torch.where(C > 0, x, 0.),
    'where, by name': lambda x: torch.where(condition=C > 0, input=x, other=C), 'x.where': lambda x: x.where(C > 0, C),
    'mul': lambda x: torch.mul(input=C, other=x), 'x1': lambda x: torch.mul(x1=x, x2=C),
    'div by name': lambda x: torch.div(input=x, other=C), 'below by name': lambda x: torch.div(input=C, other=x),
    'gelu': lambda x: F.gelu(input=x), 'softmax': lambda x: F.softmax(input=x, dim=1),
    'dropout': lambda x: F.dropout(input=x, training=False), 'pow by name': lambda x: torch.pow(input=x, exponent=3),
    'exponent': lambda x: torch.pow(self=2., exponent=x), 'relu in place': lambda x: F.relu(inplace=True, input=x.clone()),
    'out': lambda x: torch.mul(x, C, out=torch.empty(3, 4).double()),
    'addcmul': lambda x: torch.addcmul(torch.zeros(3, 4).double(), x, C), 'addcdiv': lambda x: torch.zeros(()).addcdiv(C, x),
}


@FORMS
@pytest.mark.parametrize('name', ELEMENTWISE)
def test_elementwise(name, form, recwarn):
    net, x, R = ELEMENTWISE[name], values(3, 4), torch.randn(3, 4).double()
    y = net(x.clone())
    assert_close(relevance(net, x, R=R, form=form), R.masked_fill(y == 0, 0) if form == 'R' else R * (y != 0))
    assert not [w for w in recwarn if 'relevance' in str(w.message)]


def test_entries_that_several_outputs_see_get_all_of_theirs():
    x, R = values(4), torch.randn(3, 4).double()
    for form in 'Rg':
        for net in (lambda x: C / x, lambda x: C ** x, lambda x: x / C, lambda x: x ** C):
            assert_close(relevance(net, x, R=R, form=form), R.sum(0))


PAIRS = {  # calls that mean the same
    'mean': (lambda x: torch.mean(input=x, dim=1), lambda x: x.mean(1)),
    'mean over an axis': (lambda x: torch.mean(a=x, axis=1, keepdims=True), lambda x: x.mean(1, keepdim=True)),
    'sum': (lambda x: torch.sum(input=x, dim=1), lambda x: x.sum(1)),
    'logsumexp': (lambda x: torch.logsumexp(input=x, dim=1), lambda x: x.logsumexp(1)),
    'add': (lambda x: torch.add(input=C, other=x, alpha=2), lambda x: C + 2 * x),
    'add number': (lambda x: torch.add(input=x, other=3), lambda x: x + 3),
    'sub': (lambda x: torch.sub(input=C, other=x), lambda x: C - x),
    'rsub': (lambda x: torch.rsub(x, C), lambda x: -x + C),
    '1 - x': (lambda x: 3 - x, lambda x: torch.sub(torch.tensor(3.).double(), x)),
    'matmul': (lambda x: torch.matmul(input=x, other=C.T), lambda x: x @ C.T),
    'mm': (lambda x: torch.mm(input=x, mat2=C.T), lambda x: x @ C.T),
    'addmm': (lambda x: torch.addmm(input=C[:, :3], mat1=x, mat2=C.T), lambda x: x @ C.T + C[:, :3]),
    'addmv': (lambda x: torch.addmv(input=C[:, 0], mat=x, vec=C[0]), lambda x: x @ C[0] + C[:, 0]),
    'baddbmm': (lambda x: torch.baddbmm(C[None, :, :3], x[None], C.T[None])[0], lambda x: x @ C.T + C[:, :3]),
    'tensordot': (lambda x: torch.tensordot(a=x, b=C, dims=([1], [1])), lambda x: x @ C.T),
    'linear': (lambda x: F.linear(input=x, weight=C), lambda x: F.linear(x, C)),
    'outer': (lambda x: torch.outer(x[0], vec2=x[1]), lambda x: x[0][:, None] * x[1]),
    'lerp': (lambda x: torch.lerp(input=x, end=C, weight=.25), lambda x: .75 * x + .25 * C),
    'glu': (lambda x: F.glu(x), lambda x: x[:, :2] * x[:, 2:].sigmoid()),
    'normalize': (lambda x: F.normalize(input=x, dim=1), lambda x: x / x.norm(dim=1, keepdim=True)),
    'cosine': (lambda x: F.cosine_similarity(x1=x, x2=C), lambda x: F.cosine_similarity(x, C)),
    'max': (lambda x: torch.max(input=x, dim=1)[0], lambda x: x.max(1)[0]),
    'median': (lambda x: x.median(1)[0], lambda x: x.sort(1)[0][:, 1]),
    'relu': (lambda x: F.relu(input=x - 1), lambda x: (x - 1).relu()),
    'layer norm': (lambda x: torch.layer_norm(x, (4,), C[0], C[1], .1, False), lambda x: F.layer_norm(x, (4,), C[0], C[1], .1)),
    'group norm': (lambda x: torch.group_norm(x, 2, C[0], C[1], .1, False), lambda x: F.group_norm(x, 2, C[0], C[1], .1)),
    'batch norm': (lambda x: torch.batch_norm(x, C[0], C[1], C[2], C[0], False, .1, .1, False),
                   lambda x: F.batch_norm(x, C[2], C[0], C[0], C[1], False, .1, .1)),
    'instance norm': (lambda x: torch.instance_norm(x[None], C[:, 0], C[:, 1], None, None, True, .1, .1, False),
                      lambda x: F.instance_norm(x[None], None, None, C[:, 0], C[:, 1], True, .1, .1)),
    'rms norm': (lambda x: F.rms_norm(x, (4,), C[0], .1),
                 lambda x: x * ((x**2).mean(1, keepdim=True) + .1).rsqrt().detach() * C[0]),
}


@FORMS
@pytest.mark.parametrize('name', PAIRS)
def test_calls_that_mean_the_same(name, form):
    net, same = PAIRS[name]
    x = values(3, 4)
    assert_close(net(x), same(x))
    run = trace(net, x, settings=Settings(form=form, eps=0.))
    assert_close(run.out.detach(), net(x))
    R = torch.randn_like(run.out)
    found = run.relevance(R)[0]
    assert found.abs().sum() > 0
    assert_close(found, relevance(same, x, R=R, form=form))


@FORMS
def test_both_factors_of_a_sum_with_a_product_share(form):
    a, b, c = values(3, 4), values(4, 3), values(3, 3)
    for net in (lambda c, a, b: torch.addmm(c, a, b), lambda c, a, b: c + a @ b):
        found = relevance(net, c, a, b, form=form)
        assert_close(sum(r.sum() for r in found), net(c, a, b).sum())
        assert_close(found[1].sum(), found[2].sum())
    for r, wanted in zip(found, relevance(lambda c, a, b: torch.addmm(c, a, b), c, a, b, form=form)): assert_close(r, wanted)


@pytest.mark.parametrize('other, share', [
    (torch.zeros(3, 4).double(), 1.), (torch.zeros(4).double(), 1.), (C, None),
    (torch.zeros(3, 4).double().fill_diagonal_(float('-inf')), 1.), (torch.zeros(3, 4).double().fill_diagonal_(1), None)])
@pytest.mark.parametrize('order', [torch.add, lambda x, c: torch.add(c, x), lambda x, c: torch.add(c, x, alpha=2.)])
def test_a_mask_takes_no_share_of_a_sum(order, other, share):
    "Other constants take theirs; ε tells a sum with zeros from a mask"
    x, R = values(3, 4), torch.randn(3, 4).double()
    own = x * (order(torch.ones_like(x), torch.zeros_like(x)))
    y = order(x, other)
    expected = R if share else R * own / (y + .1 * y.sign())
    assert_close(relevance(lambda x: order(x, other), x, R=R, eps=.1), expected)


KNOWN = {'relu': (F.relu, False), 'overwritten': (lambda x: F.relu(x.clone(), inplace=True), False),
         'pooled': (lambda x: F.max_pool2d(x.relu(), 2), False), 'joined': (lambda x: torch.cat([x.relu(), x.sigmoid()]), False),
         'input': (lambda x: x, True), 'turned': (lambda x: -x.relu(), True), 'less': (lambda x: x.relu().sub_(1), True),
         'scaled': (lambda x: x.relu().mul(-2), True), 'half': (lambda x: torch.cat([x.relu(), x]), True),
         'filled': (lambda x: x.relu().masked_fill(x > 0, -1.), True), 'gelu': (F.gelu, True)}


@pytest.mark.parametrize('name', KNOWN)
def test_signs_are_known_without_a_look_at_the_values(name):
    net, signed = KNOWN[name]
    ledger = []
    run = trace(lambda x: F.conv2d(net(x), torch.ones(1, 2, 1, 1)), torch.randn(2, 2, 4, 4), ledger=ledger)
    run.relevance(torch.ones_like(run.out))
    assert [layer.signed for layer, *_ in ledger] == [signed]
