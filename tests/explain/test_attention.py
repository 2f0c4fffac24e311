"Attention by the rules of AttnLRP (Achtibat et al. 2024): against loops, and conservation"
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from fsc_fastai.explain import leak_report, paper_composite
from fsc_fastai.explain.engine import trace
from fsc_fastai.explain.settings import Settings

SETTINGS = dict(composite=paper_composite(1e-9), eps=1e-9, attention='attnlrp')


def relevance(net, *x, R=None, **settings):
    run = trace(net, *x, settings=Settings(**(SETTINGS | settings)))
    return run.relevance(run.out if R is None else R)


def softmax_by_loops(x, R):
    "Proposition 3.1: R_i = x_i (R_i − s_i Σ_j R_j)"
    s, found = x.softmax(-1), torch.zeros_like(x)
    for row in range(len(x)):
        for i in range(x.shape[1]): found[row, i] = x[row, i] * (R[row, i] - s[row, i] * R[row].sum())
    return found


def product_by_loops(a, b, R):
    "Proposition 3.3: R(a_ij) = Σ_p a_ij b_jp R_ip / 2 o_ip, and likewise for b"
    o, of_a, of_b = a @ b, torch.zeros_like(a), torch.zeros_like(b)
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            for p in range(b.shape[1]):
                share = a[i, j] * b[j, p] * R[i, p] / (2 * o[i, p])
                of_a[i, j] += share
                of_b[j, p] += share
    return of_a, of_b


@pytest.mark.parametrize('form', ['R', 'g'])
def test_softmax_and_products_are_those_of_the_paper(form):
    x, R, other = torch.randn(3, 4).double(), torch.rand(3, 4).double(), torch.randn(4, 2).double()
    assert_close(relevance(lambda x: x.softmax(-1), x, R=R, form=form)[0], softmax_by_loops(x, R))
    a = torch.randn(3, 4).double()
    assert_close(relevance(torch.matmul, a, other, form=form), product_by_loops(a, other, a @ other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('form', ['R', 'g'])
@pytest.mark.parametrize('mask', [None, 'bool', 'numbers', 'causal'])
def test_attention_step_by_step(form, mask):
    "Query, key and value get what the loops say, also behind masks"
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 3).double() for _ in range(3))
    keep = torch.ones(4, 4, dtype=torch.bool).tril()
    bias = torch.randn(4, 4).double() if mask == 'numbers' else torch.zeros(4, 4).double()
    given = dict(bool=dict(attn_mask=keep), numbers=dict(attn_mask=bias), causal=dict(is_causal=True)).get(mask, {})
    found = relevance(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **given), q, k, v, form=form)
    raw = q[0] @ k[0].T / 3**.5
    logits = (raw + bias).masked_fill(~keep if mask in ('bool', 'causal') else torch.tensor(False), -torch.inf)
    weights = logits.softmax(-1)
    of_weights, of_v = product_by_loops(weights, v[0], weights @ v[0])
    of_logits = softmax_by_loops(logits.clamp(min=-1e9), of_weights)
    of_logits = of_logits * raw / (raw + bias)  # numbers that are added take their share
    of_q, of_k = product_by_loops(q[0], k[0].T, of_logits)
    for mine, theirs in zip(found, (of_q, of_k.T, of_v)): assert_close(mine[0], theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('form', ['R', 'g'])
def test_every_way_to_write_attention_agrees(form):
    layer = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    keep = torch.ones(5, 5, dtype=torch.bool).tril()
    x = torch.randn(2, 5, 8).double()
    def spelled(x):
        q, k, v = (F.linear(x, w, b).unflatten(2, (2, 4)).transpose(1, 2) for w, b in
                   zip(layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)))
        weights = (q @ k.mT / 2).masked_fill(~keep, -torch.inf).softmax(-1)
        return layer.out_proj((weights @ v).transpose(1, 2).flatten(2))
    module = lambda x: layer(x, x, x, attn_mask=~keep)[0]
    assert_close(module(x), spelled(x))
    assert_close(relevance(module, x, form=form), relevance(spelled, x, form=form))
    numbers = lambda x: layer(x, x, x, attn_mask=torch.zeros(5, 5).double().masked_fill(~keep, -torch.inf))[0]
    assert_close(relevance(numbers, x, form=form), relevance(spelled, x, form=form))
    constant, = relevance(module, x, form=form, attention='constant')
    assert not torch.allclose(constant, relevance(module, x, form=form)[0])


def test_learned_keys_are_refused():
    layer, x = nn.MultiheadAttention(8, 2, add_zero_attn=True), torch.randn(5, 1, 8)
    with pytest.raises(NotImplementedError, match="LRP\\(attention='constant'\\)"): relevance(lambda x: layer(x, x, x)[0], x)


class Tiny(nn.Module):
    "A transformer of one block on patches, written out"
    def __init__(self):
        super().__init__()
        self.patches, self.qkv, self.project = (nn.Linear(i, o, bias=False) for i, o in ((12, 8), (8, 24), (8, 8)))
        self.up, self.down, self.out = (nn.Linear(i, o, bias=False) for i, o in ((8, 16), (16, 8), (8, 3)))
        self.norms = nn.ModuleList(nn.LayerNorm(8, eps=1e-9, bias=False) for _ in range(3))

    def forward(self, x):
        x = self.patches(F.unfold(x, 2, stride=2).mT)
        q, k, v = (o.unflatten(2, (2, 4)).transpose(1, 2) for o in self.qkv(self.norms[0](x)).chunk(3, -1))
        x = x + self.project((torch.matmul((q @ k.mT / 2).softmax(-1), v)).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norms[1](x))))
        return self.out(self.norms[2](x).mean(1))


def test_what_is_conserved():
    "The softmax takes x_i(R_i − s_i Σ R_j): where that sums to something else the total changes, and the report says by how much"
    torch.manual_seed(3)
    net, image = Tiny().double(), torch.randn(2, 3, 4, 4).double()
    totals = {}
    for attention in ('constant', 'attnlrp'):
        report = leak_report(net, image, settings=Settings(**(SETTINGS | {'attention': attention})))
        totals[attention] = report.iloc[-1]
        layers = report.iloc[:-1]
        assert (layers.lost.abs() < 1e-5 * layers.relevance_out.abs().clip(lower=1)).all()  # each linear layer conserves
    total = totals['constant']
    assert abs(total.lost) < 1e-3 * abs(total.relevance_out)
    assert abs(totals['attnlrp'].lost) > 1e-3
