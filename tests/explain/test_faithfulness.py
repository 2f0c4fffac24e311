"Faithfulness on models whose truth is known, and against quantus on the same arrays"
import math

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from torch import nn
from torch.testing import assert_close

from fsc_fastai.explain.faithfulness import area, random_ranks, removal_curve, removal_curves
from fsc_fastai.explain.map_quality import grid_energy, points_at, rank_correlation, relevance_mass, structural_similarity
from fsc_fastai.explain.mosaics import mosaics
from fsc_fastai.explain.randomisation import randomisation, shuffled_layers
from fsc_fastai.explain.removal import patch_relevance, removal_ranks, replacement


def linear(seed=0, size=6, channels=2):
    "A linear score of images, and the exact contribution of each pixel against the mean colour"
    g = torch.Generator().manual_seed(seed)
    w, x = (torch.randn(3, channels, size, size, generator=g).double() for _ in range(2))
    return lambda x: (w.repeat(len(x) // 3, 1, 1, 1) * x).sum((1, 2, 3)), x, (w * (x - x.mean((2, 3), keepdim=True))).sum(1)


def test_of_a_linear_model_the_order_is_exact():
    "Each step takes away what the removed pixels contributed; no other order falls faster"
    score, x, heat = linear()
    curves = removal_curves(score, x, heat, patch=1, steps=36)
    falls = heat.flatten(1).sort(1, descending=True).values.cumsum(1)
    assert_close(curves.forward, torch.cat([score(x)[:, None], score(x)[:, None] - falls], 1))
    assert_close(curves.reverse.diff(dim=1), -heat.flatten(1).sort(1).values)
    best = area(curves.forward)
    filler = replacement(x)
    for seed in range(20):
        other = removal_curve(score, x, random_ranks((3, 6, 6), seed), filler, 1, 36)
        assert (area(other) > best).all() and (area(other) < area(curves.reverse)).all()


def test_insertion_is_the_reverse_curve_read_from_its_end():
    "Built the long way: from the filler, patches are put back, the most relevant first"
    score, x, heat = linear()
    curves, ranks, filler = removal_curves(score, x, heat, 2, 9), removal_ranks(patch_relevance(heat, 2)), replacement(x)
    for k in range(10):
        back = (ranks < k).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
        assert_close(curves.insertion[:, k], score(torch.where(back, x, filler)))
    assert_close(area(curves.insertion), area(curves.reverse))


@pytest.mark.parametrize('replace', ['mean', 'blur', 'noise'])
def test_a_model_that_looks_at_one_patch(replace):
    "The true map lets the score fall at the first step and not before the last one in reverse; the random order is between them"
    score = lambda x: x[:, :, 4:8, 8:12].pow(2).mean((1, 2, 3))
    x = 3 + torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    x[:, :, 4:8, 8:12] += 5
    heat = torch.zeros(8, 16, 16)
    heat[:, 4:8, 8:12] = 1
    curves = removal_curves(score, x, heat, 4, 16, replace)
    after = score(replacement(x, replace))
    assert_close(curves.forward, torch.cat([score(x)[:, None], after[:, None].expand(-1, 16)], 1))
    assert_close(curves.reverse, torch.cat([score(x)[:, None].expand(-1, 16), after[:, None]], 1))
    assert (area(curves.forward) < area(curves.random)).all() and (area(curves.random) < area(curves.reverse)).all()


def test_patches_of_several_images_compete():
    "A row of three images, of which the second one alone counts"
    score = lambda x: x[:, 1, 0, :4, :4].mean((1, 2))
    x = torch.rand(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    heat = torch.zeros(2, 3, 8, 8)
    heat[:, 1, :4, :4] = 1
    curves = removal_curves(score, x, heat, 4, 12)
    mean = x[:, 1, 0].mean((1, 2))
    assert_close(curves.forward[:, 1:], mean[:, None].expand(-1, 12))
    assert_close(curves.reverse[:, :-1], score(x)[:, None].expand(-1, 12))


def test_patches_at_edges_that_fit_none():
    heat = torch.arange(25.).view(1, 5, 5)
    assert patch_relevance(heat, 2).tolist() == [[[12., 20., 13.], [52., 60., 33.], [41., 45., 24.]]]
    removed_last = removal_curve(lambda x: x.sum((1, 2, 3)), torch.ones(1, 1, 5, 5), torch.arange(9).view(1, 3, 3),
                                 torch.zeros(1, 1, 5, 5), 2, 9)
    assert removed_last[0].tolist() == [25, 21, 17, 15, 11, 7, 5, 3, 1, 0]


def test_what_takes_the_place_of_pixels():
    x = torch.randn(2, 3, 20, 24)
    assert_close(replacement(x, 'mean'), x.mean((2, 3), keepdim=True).expand_as(x))
    blurred = replacement(x, 'blur')
    assert blurred.shape == x.shape and blurred.std() < .5 * x.std()
    assert_close(replacement(torch.ones(1, 1, 9, 9), 'blur'), torch.ones(1, 1, 9, 9))
    noise = replacement(10 + 3 * x, 'noise')
    assert_close(noise, replacement(10 + 3 * x, 'noise')) and (noise - 10).abs().mean() > 1
    assert not torch.equal(noise, replacement(10 + 3 * x, 'noise', 1))
    with pytest.raises(ValueError, match="replace='black': choose from"): replacement(x, 'black')


@pytest.mark.parametrize('steps', [0, 10])
def test_too_many_steps(steps):
    score, x, heat = linear()
    with pytest.raises(ValueError, match=f'steps={steps}: from 1 to the number of patches, 9'):
        removal_curves(score, x, heat, 2, steps)


# The grid

def test_grid_energy():
    i = torch.arange(48)
    grid = torch.cos(2 * math.pi * i / 8)
    pure = (grid[:, None] + grid).expand(1, 48, 48)
    assert_close(grid_energy(pure), torch.ones(1).double())
    noise = torch.randn(40, 48, 48, generator=torch.Generator().manual_seed(0))
    assert grid_energy(noise).mean().abs() < .01
    blob = torch.exp(-((i[:, None] - 20.)**2 + (i - 30.)**2) / 80)[None]
    assert grid_energy(blob).abs() < .01
    # a share of the energy along rows and columns; half of the grid's energy is in each direction, all of the noise's in both
    both = noise / noise.std() + pure / pure.std()
    assert_close(grid_energy(both).mean().item(), .5 / 1.5, rtol=.03, atol=0)
    fine = torch.cos(math.pi * i)[:, None].expand(1, 48, 48)  # period 2, which is a part of 8
    assert_close(grid_energy(fine + .1 * noise[:1]).item(), 1., rtol=.05, atol=0)
    assert grid_energy(torch.cos(2 * math.pi * i / 12).expand(1, 48, 48)).abs() < .01
    with pytest.raises(ValueError, match='period=32: wanted maps of at least 96 pixels, found 48'): grid_energy(noise, 32)


def test_a_stride_makes_a_grid():
    "Gradients of a strided convolution of kernel 1 reach every fourth pixel only"
    x = torch.randn(4, 1, 48, 48, requires_grad=True)
    maps, = torch.autograd.grad(nn.Conv2d(1, 8, 1, stride=4)(x).relu().sum(), x)
    smooth, = torch.autograd.grad(nn.Conv2d(1, 8, 5, padding=2)(x).relu().sum(), x)
    assert grid_energy(maps[:, 0]).min() > .5 and grid_energy(smooth[:, 0]).max() < .1


# Where it is known where the class is

def test_localisation():
    heat, mask = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[:, :2, :2] = True
    heat[0, 0, 0], heat[0, 3, 3] = 3, 1
    heat[1, 2, 2], heat[1, 0, 1], heat[1, 1, 1] = 3, 1, -8
    assert relevance_mass(heat, mask).tolist()[:2] == [.75, .25] and relevance_mass(heat, mask)[2].isnan()
    assert points_at(heat, mask).tolist()[:2] == [1, 0]


def test_mosaics():
    x = torch.arange(5.).view(5, 1, 1, 1).expand(5, 1, 9, 8).clone()
    y = torch.tensor([0, 0, 1, 2, 3])
    pictures, mask = mosaics(x, y)
    assert pictures.shape == (5, 1, 9, 8) and mask.shape == (5, 9, 8)
    for i in range(5):
        assert pictures[i, 0][mask[i]].round().unique().tolist() == [i]
        others = pictures[i, 0][~mask[i]].round().unique().long()
        assert len(others) == 3 and (y[others] != y[i]).all()
    assert len({tuple(m.flatten().tolist()) for m in mosaics(x, y, 3)[1]}) > 1
    assert len(mosaics(x[:3], y[:3])[0][2].round().unique()) == 3  # one image of another class in two quarters
    with pytest.raises(ValueError, match='two classes'): mosaics(x[:2], y[:2])


# Weights that are shuffled

def net_of_two():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 9)).eval()


def test_layers_are_shuffled_from_the_scores_down():
    net = net_of_two()
    nn.init.normal_(net[1].weight)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    seen = [(name, {k: v.clone() for k, v in changed.state_dict().items()}) for name, changed in shuffled_layers(net)]
    assert [name for name, _ in seen] == ['4', '0']
    for k, v in before.items(): assert_close(net.state_dict()[k], v)
    changed = [{k for k in before if not torch.equal(before[k], state[k])} for _, state in seen]
    assert changed[0] == {'4.weight', '4.bias'} and changed[1] == changed[0] | {'0.weight', '0.bias', '1.weight'}
    for k in ('4.weight', '0.weight'): assert_close(seen[1][1][k].flatten().sort().values, before[k].flatten().sort().values)


def test_a_map_of_the_image_alone_stays_alike_and_one_of_the_model_does_not():
    net, x = net_of_two(), torch.randn(3, 1, 8, 8)
    def gradient(model):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)[0][:, 0]
    edges = randomisation(net, lambda model: x[:, 0].abs())
    assert edges.layer.tolist() == ['', '4', '0'] and np.allclose(edges.rank_correlation, 1) and np.allclose(edges.ssim, 1)
    of_model = randomisation(net, gradient)
    assert of_model.rank_correlation[0] == pytest.approx(1) and of_model.rank_correlation[2] < .3 and of_model.ssim[2] < .3


# quantus

@pytest.fixture
def quantus(): return pytest.importorskip('quantus', reason='pip install quantus')


class Weighted(nn.Module):
    "A linear score a class"
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 1 * 8 * 8, generator=torch.Generator().manual_seed(0)))
    def forward(self, x): return x.flatten(1) @ self.w.T


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('features', [1, 8])
def test_deletion_is_that_of_quantus(quantus, features):
    "Pixel flipping to the mean, softmax of class 1, the same number of pixels a step"
    net, x, y = Weighted().eval(), torch.randn(4, 1, 8, 8), np.ones(4, dtype=int)
    heat = torch.randn(4, 8, 8)
    def to_mean(arr, indices, **_):
        rows = torch.from_numpy(arr)
        return rows.scatter(1, torch.from_numpy(indices), replacement(x).flatten(1)).numpy()
    theirs = quantus.PixelFlipping(features_in_step=features, perturb_func=to_mean, normalise=False, return_auc_per_sample=False)(
        model=net, x_batch=x.numpy(), y_batch=y, a_batch=heat[:, None].numpy(), softmax=True)
    ours = removal_curves(lambda x: net(x).softmax(1)[:, 1], x, heat, 1, 64 // features).forward
    assert_close(ours[:, 1:], torch.tensor(np.array(theirs)).float())
    areas = trapezoid(np.array(theirs), dx=1 / (64 // features - 1), axis=1)  # their own asks numpy for what it has no more
    assert_close(area(ours[:, 1:]), torch.tensor(areas).float())


def test_likeness_is_that_of_quantus(quantus):
    from quantus.functions.similarity_func import correlation_spearman, ssim
    a, b = torch.randn(3, 12, 12).double(), torch.randn(3, 12, 12).double().round(decimals=1)  # with ties
    b = b + a / 2
    scaled = lambda x: ((x - x.min()) / (x.max() - x.min())).numpy()
    for i in range(3):
        spearman = correlation_spearman(a[i].flatten().numpy(), b[i].flatten().numpy())
        assert rank_correlation(a, b)[i].item() == pytest.approx(spearman)
        assert structural_similarity(a, b)[i].item() == pytest.approx(ssim(scaled(a[i]), scaled(b[i])), abs=1e-6)
