"Feature-wise transformations: the formula, the places, and that they leave no trace"
import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from fsc_fastai.encode import create_encoder
from fsc_fastai.encode.transformation import (
    FeatureWiseTransformation,
    add_ft,
    ft_layers,
    ft_parameters,
    remove_ft,
    residual_norms,
)
from fsc_fastai.methods import create_fsc_model


def state(model): return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b): return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_formula_with_the_published_start():
    layer, x = FeatureWiseTransformation(4), torch.randn(3, 4, 5, 6)
    torch.manual_seed(7)
    y = layer(x)
    torch.manual_seed(7)
    eps_gamma, eps_beta = torch.randn(1, 4, 1, 1), torch.randn(1, 4, 1, 1)
    softplus = lambda v: (1 + (100*v).exp()).log() / 100  # noqa: E731
    expected = (1 + eps_gamma*softplus(torch.tensor(0.3))) * x + eps_beta*softplus(torch.tensor(0.5))
    torch.testing.assert_close(y, expected)
    assert all(p.requires_grad for p in layer.parameters())


def test_every_call_draws_anew_and_eval_mode_is_the_identity():
    layer, x = FeatureWiseTransformation(4), torch.randn(3, 4, 5, 5)
    assert not torch.equal(layer(x), layer(x))
    assert layer.eval()(x) is x


@pytest.mark.parametrize('shape', [(2, 7, 4), (2, 3, 3, 4), (5, 4)])
def test_tokens_have_their_channels_last(shape):
    y = FeatureWiseTransformation(4, channel_dim=-1)(torch.zeros(shape)).flatten(0, -2)
    assert torch.equal(y, y[:1].expand_as(y)) and y[0].unique().numel() == 4


def test_half_precision_features_stay_so():
    assert FeatureWiseTransformation(4)(torch.randn(2, 4, 3, 3).bfloat16()).dtype == torch.bfloat16


PLACES = {
    'conv4': [f'stages.{i}.norm' for i in range(4)],
    'resnet10': ['layer1.0.bn2'] + [f'layer{i}.0.{norm}' for i in (2, 3, 4) for norm in ('bn2', 'downsample.1')],
    'resnet12': [f'layer{i}.0.{norm}' for i in (1, 2, 3, 4) for norm in ('bn3', 'downsample.1')],
    'resnet10t': ['layer1.0.bn2'] + [f'layer{i}.0.{norm}' for i in (2, 3, 4) for norm in ('bn2', 'downsample.2')],
    'test_vit': [f'blocks.{i}.norm{j}' for i in range(6) for j in (1, 2)],
    'test_resnet': ['layer1.0.bn2', 'layer2.0.bn2', 'layer2.0.downsample.2', 'layer3.0.bn3', 'layer3.0.downsample.2',
                    'layer4.0.bn2', 'layer4.0.downsample.2'],
}


@pytest.mark.parametrize('arch', PLACES)
def test_last_norm_of_every_residual_branch_and_shortcut(arch):
    model = timm.create_model(arch, num_classes=0)
    assert residual_norms(model) == PLACES[arch]


@pytest.mark.parametrize('arch', ['regnetx_002', 'test_efficientnet', 'test_convnext', 'test_vit', 'resnet10'])
def test_any_timm_model_trains_with_them_and_forgets_them(arch):
    encoder = create_encoder(arch, img_size=64)
    x, before = torch.randn(2, 3, 64, 64), state(encoder)
    layers = add_ft(encoder)
    assert same(before, state(encoder)) and not {id(p) for p in ft_parameters(encoder)} & {id(p) for p in encoder.parameters()}
    assert ft_layers(encoder) == list(layers.values())
    plain, noisy = (encoder.train(mode)(x) for mode in (False, True))
    noisy.square().sum().backward()
    assert sum(p.grad.abs().sum() for p in ft_parameters(encoder)) > 0
    encoder.load_state_dict(before)
    assert torch.equal(encoder.eval()(x), plain)
    assert remove_ft(encoder) is encoder and ft_layers(encoder) == [] and not any(m._forward_hooks for m in encoder.modules())
    encoder.train()
    assert torch.equal(encoder(x), encoder(x)) or arch == 'test_efficientnet'  # drops paths at random


class Functional(nn.Module):
    "Two branches of a stem, summed in the forward: neither the stem's norm nor those inside a branch are meant"
    def __init__(self):
        super().__init__()
        self.conv = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(4))
        self.stem, self.last, self.after = (nn.BatchNorm2d(4) for _ in range(3))
        self.inner, self.side = nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)

    def forward(self, x):
        x = F.relu_(self.stem(self.conv[0](x)))
        branch = self.last(self.conv[2](F.relu_(self.inner(self.conv[1](x)))))
        branch += self.side(self.conv[3](x))
        return self.after(branch + 1)


def test_places_follow_the_computation_not_the_names():
    assert residual_norms(Functional()) == ['last', 'side']


def test_looking_for_places_changes_nothing():
    model = Functional().train()
    model.inner.eval()
    for p in model.parameters(): p.requires_grad_(False)
    before, modes, rng = state(model), [m.training for m in model.modules()], torch.get_rng_state()
    residual_norms(model)
    assert same(before, state(model)) and modes == [m.training for m in model.modules()]
    assert torch.equal(rng, torch.get_rng_state()) and not any(m._forward_hooks for m in model.modules())


def test_built_in_activation_comes_after_the_transformation():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4))
    add_ft(model, beta=3.)
    y = model(torch.randn(2, 3, 9, 9))
    assert y.min() == 0 and ft_layers(model)


def test_a_frozen_norm_in_eval_mode_is_not_transformed():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    add_ft(model)
    model.train()[1].eval()
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(model(x), model(x))


def test_they_are_in_the_encoder_where_names_say_and_of_the_norms_type():
    model = create_fsc_model('relation', 'conv4', img_size=28).double()
    assert list(add_ft(model)) == [f'encoder.body.stages.{i}.norm' for i in range(4)]
    assert {p.dtype for p in ft_parameters(model)} == {torch.float64}
    named = add_ft(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4)).double(), names=['1'])
    assert list(named) == ['1'] and {p.dtype for p in named['1'].parameters()} == {torch.float64}


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_transformations_of_their_own(copied):
    model = create_encoder('conv4', img_size=28).train()
    add_ft(model)
    twin = copied(model)
    assert len(ft_layers(twin)) == 4 and not set(map(id, ft_parameters(twin))) & set(map(id, ft_parameters(model)))
    x = torch.randn(2, 3, 28, 28)
    assert not torch.equal(twin(x), twin(x))


def test_mistakes_are_named():
    model = create_encoder('conv4', img_size=28)
    with pytest.raises(ValueError, match="Encoder has no normalisation layer called 'body.stages.0.conv'.*body.stages.0.norm"):
        add_ft(model, names=['body.stages.0.conv'])
    with pytest.raises(ValueError, match='Sequential has no normalisation layer'): add_ft(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(ValueError, match=r'cannot run on images of shape \(2, 1, 28, 28\)'):
        residual_norms(model, torch.zeros(2, 1, 28, 28))
    add_ft(model)
    with pytest.raises(ValueError, match='has feature-wise transformations already'): add_ft(model)
