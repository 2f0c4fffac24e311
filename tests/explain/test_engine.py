"The engine against zennit, against gradients, against itself; and that it leaves no trace"
import copy

import pytest
import torch
import torch.nn.functional as F
import zennit.layer
from torch import nn
from torch.testing import assert_close
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import LayerMapComposite
from zennit.rules import AlphaBeta as ZennitAlphaBeta
from zennit.rules import Epsilon as ZennitEpsilon
from zennit.rules import Norm, Pass, ZPlus
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

from fsc_fastai.explain import LRP, Composite, Epsilon, Flat, ZBox, leak_report, paper_composite, register_op
from fsc_fastai.explain.engine import trace
from fsc_fastai.explain.ops import HANDLERS
from fsc_fastai.explain.settings import Settings

from .nets import assert_unchanged, images, random_cnn, state

FORMS = pytest.mark.parametrize('form', ['R', 'g'])
EPSILON = Composite({nn.Module: Epsilon(0.)})


def relevance(net, x, R=None, **settings):
    run = trace(net, x, settings=Settings(**settings))
    return run.relevance(run.out if R is None else R)[0]


def zennit_relevance(net, x, R, conv, canonizers=(), zero_params='bias'):
    rules = [(Activation, Pass()), (BatchNorm, Pass()), (AvgPool, Norm(stabilizer=1e-9)),
             (zennit.layer.Sum, Norm(stabilizer=1e-3)), (Convolution, conv),
             (Linear, ZennitEpsilon(epsilon=1e-3, zero_params=zero_params))]
    with LayerMapComposite(rules, canonizers=list(canonizers)).context(net) as hooked:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(hooked(x), x, R)[0]


# Oracles

@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('alpha', [1., 2.])
def test_zennit(seed, alpha):
    "Average pools only: zennit passes max-pools by their gradient, the published form by gradient × input"
    x, R = images(), torch.randn(2, 4).double()
    conv = ZPlus(1e-15, zero_params='bias')
    if alpha > 1: conv = ZennitAlphaBeta(alpha, alpha - 1, stabilizer=1e-12, zero_params='bias')
    expected = zennit_relevance(random_cnn(seed, zennit_sum=True, pool=nn.AvgPool2d), x, R, conv)
    found = relevance(random_cnn(seed, pool=nn.AvgPool2d), x, R, composite=paper_composite(1e-3, alpha))
    # zennit's α-β-rule always has a stabiliser
    assert_close(found, expected, rtol=1e-6, atol=1e-9 if alpha == 1 else 1e-6)


def test_zennit_with_merged_batch_norm():
    "norm='fold' is zennit's canonizer and its rules with biases"
    def chain(seed):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                            nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)).double()
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                for p, std in ((m.weight, 1.), (m.bias, .3), (m.running_mean, .3)): nn.init.normal_(p, std=std)
        return net.eval()
    x, R = images(), torch.randn(2, 2, 10, 10).double()
    expected = zennit_relevance(chain(0), x, R, ZPlus(1e-15), [SequentialMergeBatchNorm()])
    assert_close(relevance(chain(0), x, R, norm='fold'), expected, rtol=1e-5, atol=1e-6)


@FORMS
@pytest.mark.parametrize('pool', [nn.AvgPool2d, nn.MaxPool2d])
def test_without_stabiliser_and_bias_it_is_gradient_times_input(form, pool):
    net, x = random_cnn(norm=False, bias=False, pool=pool), images()
    for m in net.modules():
        if isinstance(m, nn.Conv2d): m.bias = None
    found = relevance(net, x, composite=paper_composite(0.), eps=0., form=form)
    epsilon = relevance(net, x, composite=EPSILON, eps=0., form=form)
    x.requires_grad_()
    gradient = torch.autograd.grad(net(x).sum(), x)[0]
    assert_close(epsilon, (x * gradient).detach(), rtol=1e-8, atol=1e-10)
    assert (found - epsilon).abs().max() > 1e-3  # the α-rule is another one


@FORMS
@pytest.mark.parametrize('norm', ['identity', 'signed'])
def test_relevance_is_conserved_layer_by_layer(form, norm):
    net, x = random_cnn(negative=norm == 'signed'), images()
    report = leak_report(net, x, settings=Settings(paper_composite(1e-9), 1e-9, norm, form))
    assert len(report) == 7 and report.layer.iloc[-1] == '(total)'
    assert report.lost.abs().max() < 1e-5


def test_a_leak_is_reported_where_it_is():
    net, x = random_cnn(), images()
    report = leak_report(net, x, settings=Settings(paper_composite(eps=10.))).set_index('layer')
    assert report.lost.drop('(total)').abs().idxmax() in ('10', '12')
    report = leak_report(nn.Linear(3, 2, bias=False), torch.zeros(1, 3), R=torch.ones(1, 2))
    assert report.lost[0] == report.dead[0] == 2


@FORMS
def test_all_classes_in_one_pass(form):
    run = trace(random_cnn(), images(), settings=Settings(form=form))
    starts = torch.randn(5, 2, 4).double()
    together = run.relevance(starts, keep=True)[0]
    one_by_one = torch.stack([run.relevance(R, keep=True)[0] for R in starts])
    assert_close(together, one_by_one)
    assert_close(run.relevance(starts.sum(0))[0], together.sum(0))  # relevance is linear in its start


@FORMS
def test_signed_batch_norm_equals_turned_weights(form):
    "A negative scale is a positive one behind turned weights; passing it unchanged is right for the latter only"
    net, x = random_cnn(negative=True), images()
    turned = copy.deepcopy(net)
    for conv, bn in ((turned[0], turned[1]), (turned[4].conv1, turned[4].norm), (turned[5], turned[6])):
        sign = bn.weight.data.sign()
        conv.weight.data *= sign[:, None, None, None]
        if conv.bias is not None: conv.bias.data *= sign
        bn.running_mean *= sign
        bn.weight.data *= sign
    assert_close(turned(x), net(x))
    assert_close(relevance(net, x, norm='signed', form=form), relevance(turned, x, norm='identity', form=form))
    assert not torch.allclose(relevance(net, x, form=form), relevance(turned, x, form=form))


@FORMS
@pytest.mark.parametrize('norm', ['identity', 'signed', 'fold'])
def test_the_input_rule_gives_relevance_to_zero_pixels(form, norm):
    net = random_cnn()
    found = relevance(net, torch.zeros(1, 3, 16, 16).double(), norm=norm, form=form,
                      composite=LRP(composite={0: Flat()}).settings.composite)
    assert found.abs().min() > 0


# What networks are made of


@FORMS
@pytest.mark.parametrize('conv,size', [
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=2), (4, 9, 9)), (nn.Conv2d(4, 6, 2, padding='same'), (4, 5, 5)),
    (nn.Conv2d(4, 6, 3, padding='valid'), (4, 5, 5)), (nn.Conv1d(4, 6, 3, padding=1), (4, 9)),
    (nn.Conv3d(4, 6, 3), (4, 4, 4, 4)), (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, padding=1), (4, 5, 5)),
    (nn.Linear(9, 3), (4, 9))], ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else '')
def test_layers_of_every_shape(conv, size, form):
    "Relevance arrives in full, and for the ε-rule as gradient × input"
    x, bare = torch.randn(2, *size).double(), copy.deepcopy(conv).double()
    bare.bias = None
    R = relevance(bare, x, composite=EPSILON, form=form)
    leaf = x.clone().requires_grad_()
    assert_close(R, (x * torch.autograd.grad(bare(leaf).sum(), leaf)[0]))
    assert_close(relevance(conv.double(), x, composite=EPSILON, form=form).sum(), conv(x).sum())


def test_unbatched_images():
    conv = nn.Conv2d(3, 2, 3).double()
    assert_close(relevance(conv, images(1)[0]), relevance(conv, images(1))[0])


@FORMS
@pytest.mark.parametrize('layer', [nn.GroupNorm(2, 6), nn.InstanceNorm2d(6, affine=True), nn.BatchNorm2d(6),
                                   nn.LayerNorm([6, 5, 5]), nn.GELU(), nn.SiLU(), nn.ReLU6(), nn.PReLU(6), nn.Hardswish(),
                                   nn.Dropout2d(), nn.AdaptiveAvgPool2d(2), nn.Upsample(scale_factor=2, mode='bilinear'),
                                   nn.PixelShuffle(1), nn.ZeroPad2d(1), nn.MaxPool2d(2, return_indices=False)],
                         ids=lambda m: type(m).__name__)
@pytest.mark.parametrize('norm', ['identity', 'signed', 'fold'])
def test_known_operations_neither_warn_nor_raise(layer, norm, form, recwarn):
    net = nn.Sequential(nn.Conv2d(3, 6, 3), layer, nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(2, 3, 7, 7)
    net(x)
    found = relevance(net, x, norm=norm, form=form)
    assert found.isfinite().all() and found.abs().sum() > 0
    assert not [w for w in recwarn if 'relevance' in str(w.message)]


def test_attention_weights_are_constants():
    "Through nn.MultiheadAttention relevance flows as through its values alone"
    attention = nn.MultiheadAttention(8, 2, bias=False, batch_first=True).double().eval()
    x = torch.randn(2, 5, 8).double()
    weights = attention(x, x, x, average_attn_weights=False)[1].detach()
    def values_only(x):
        v = F.linear(x, attention.in_proj_weight[16:]).unflatten(2, (2, 4)).transpose(1, 2)
        return F.linear((weights @ v).transpose(1, 2).flatten(2), attention.out_proj.weight)
    for form in 'Rg': assert_close(relevance(lambda x: attention(x, x, x)[0], x, form=form), relevance(values_only, x, form=form))


@pytest.mark.parametrize('options', [[], ['add_bias_kv'], ['add_zero_attn'], ['add_bias_kv', 'add_zero_attn']], ids=str)
def test_biases_of_attention_and_values_beyond_the_input_s(options):
    attention = nn.MultiheadAttention(8, 2, batch_first=True, **dict.fromkeys(options, True)).double().eval()
    x = torch.randn(2, 5, 8).double()
    weights = attention(x, x, x, average_attn_weights=False)[1].detach()
    w, b = attention.in_proj_weight[16:].detach(), torch.randn(8).double()
    with torch.no_grad(): attention.in_proj_bias[16:] = b
    more = [] if attention.bias_v is None else [attention.bias_v.detach().expand(2, 1, 8)]
    if attention.add_zero_attn: more.append(torch.zeros(2, 1, 8))
    def values_only(x):
        v = torch.cat([F.linear(x, w, b), *(m.double() for m in more)], 1).unflatten(2, (2, 4)).transpose(1, 2)
        return F.linear((weights @ v).transpose(1, 2).flatten(2), attention.out_proj.weight, attention.out_proj.bias)
    assert_close(values_only(x), attention(x, x, x)[0])
    for form in 'Rg': assert_close(relevance(lambda x: attention(x, x, x)[0], x, form=form), relevance(values_only, x, form=form))


def test_fused_and_spelled_out_attention_agree():
    q, k = torch.randn(2, 3, 4).double(), torch.randn(2, 5, 4).double()
    fused = lambda v: F.scaled_dot_product_attention(q, k, v)
    spelled = lambda v: (q @ k.mT / 2).softmax(-1) @ v
    v = torch.randn(2, 5, 4).double()
    assert_close(relevance(fused, v), relevance(spelled, v))


def test_gates_are_constants_and_equal_factors_share():
    x = torch.rand(3, 4).double() + .1
    gated = lambda x: x[:, :2] * torch.sigmoid(3 * x[:, 2:])
    product = lambda x: x[:, :2] * x[:, 2:]
    for form in 'Rg':
        assert_close(relevance(gated, x, form=form, eps=0.), torch.cat([gated(x), torch.zeros(3, 2).double()], 1))
        assert_close(relevance(product, x, form=form, eps=0.), product(x).repeat(1, 2) / 2)


@pytest.mark.parametrize('arch', ['vit_tiny_patch16_224', 'convnext_atto', 'efficientnet_b0', 'densenet121', 'regnetx_002',
                                  'resnet10t', 'resnetv2_50'])
def test_timm_networks_run_unmodified(arch, recwarn):
    import timm
    net = timm.create_model(arch, num_classes=3, **({'img_size': 32} if 'vit' in arch else {})).eval()
    found = LRP().relevance(net, torch.randn(1, 3, 32, 32))
    assert found.isfinite().all() and found.abs().sum() > 0
    assert not [w for w in recwarn if 'relevance' in str(w.message)]


def test_an_unknown_operation_warns_once():
    "One that no other test has, as it is once in a process"
    x = torch.rand(2, 3).double()
    with pytest.warns(UserWarning, match="'cumprod'.*register_op") as seen:
        for _ in range(2): relevance(lambda x: x.cumprod(1), x)
    assert len([w for w in seen if 'cumprod' in str(w.message)]) == 1


def test_an_unknown_layer_is_an_error_with_the_remedy():
    "Relevance that follows no rule would look like an explanation; a handler that is registered mends it"
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.twist = nn.Bilinear(3, 3, 2)
        def forward(self, x): return self.twist(x, x)
    model, x = Model(), torch.rand(1, 3)
    with pytest.raises(NotImplementedError, match=r"'bilinear' of layer 'twist' \(Bilinear\).*register_op"): relevance(model, x)
    try:
        register_op('bilinear')(lambda mode, func, args, kwargs: mode.mix(func, args, kwargs))
        assert relevance(model, x).shape == x.shape
    finally: del HANDLERS['bilinear']


def test_an_output_that_does_not_depend_on_the_input():
    with pytest.raises(ValueError, match='does not depend'): relevance(lambda x: torch.ones(2), torch.rand(2))


# No trace


class Failing(nn.Module):
    "Works in the forward pass of the engine or fails there, as wanted"
    def __init__(self, fail): super().__init__(); self.fail = fail
    def forward(self, x):
        if self.fail: raise RuntimeError('half-way')
        return x


def fail_backward(layer, x, R): raise RuntimeError('half-way')
fail_backward.of_input = False


@pytest.mark.parametrize('fails', [None, 'forward', 'backward'])
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('no_grad', [True, False])
def test_the_model_stays_as_it_is(fails, training, no_grad):
    net = nn.Sequential(random_cnn(), nn.Dropout(), Failing(fails == 'forward'), nn.LayerNorm(4).double()).train(training)
    net[0][0].weight.requires_grad_(False)
    net[0](images()).sum().backward()
    before, rules = state(net), {0: fail_backward} if fails == 'backward' else {}
    x = images().requires_grad_()
    with torch.set_grad_enabled(not no_grad):
        if fails is None:
            found = LRP(composite=rules).relevance(net, x)
            assert not found.requires_grad
        else:
            with pytest.raises(RuntimeError, match='half-way'): LRP(composite=rules).relevance(net, x)
        assert torch.is_grad_enabled() != no_grad
    assert x.grad is None
    assert_unchanged(before, state(net))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.half])
def test_single_precision_whatever_autocast_says(dtype):
    net, x = random_cnn().float(), images().float()
    expected = relevance(net, x)
    with torch.autocast('cpu', dtype):
        found = relevance(net, x)
        assert torch.is_autocast_enabled('cpu')
    assert found.dtype == torch.float32
    assert_close(found, expected, rtol=0, atol=0)


def test_a_model_in_half_precision():
    net, x = random_cnn().bfloat16(), images().bfloat16()
    found = relevance(net, x)
    assert found.dtype == torch.float32
    assert_close(found, relevance(copy.deepcopy(net).float(), x.float()))
    assert next(net.parameters()).dtype == torch.bfloat16


def test_inference_mode():
    net, x = random_cnn(), images()
    expected = relevance(net, x)
    with torch.inference_mode(): found = relevance(net, x.clone())
    assert_close(found, expected)


def test_box_rule_at_the_pixels_conserves():
    net, x = random_cnn(norm=False), images()
    run = trace(net, x, settings=Settings(LRP(1e-9, composite={0: ZBox(-5., 5., 1e-12)}).settings.composite, 1e-9))
    assert_close(run.relevance(run.out)[0].sum(), run.out.detach().sum(), rtol=1e-5, atol=1e-6)
