"Operations on styles give the published numbers"
import pytest
import torch

from fsc_fastai.callback.parts.styles import (
    half_way_kl,
    kl,
    low_band,
    restyle,
    restyle_low,
    style,
    viewed_back,
    viewed_tokens,
)

from ...golden_files import load, recorded, same
from ..golden import OPS


@recorded('styleadv_ops_*.npz')
def test_style_restyle_and_kl(path):
    z, _ = load(path)
    mean, std = style(z['x'])
    same(mean, z['mean'], OPS)
    same(std, z['std'], OPS)
    for i in range(len(z['epsilons'])):
        same(restyle(z['x'], z[f'adv_mean_{i}'], z[f'adv_std_{i}']), z[f'restyled_{i}'], OPS, f'restyled_{i}')
    p, q = (z[k].requires_grad_() for k in ('scores_ori', 'scores_adv'))
    loss = kl(p, q)
    same(loss, z['kl'], OPS)
    for ours, key in zip(torch.autograd.grad(loss, [p, q]), ('kl_grad_ori', 'kl_grad_adv'), strict=True): same(ours, z[key], OPS)


@recorded('wavesan_ops_*.npz')
def test_swap_of_the_low_band(path):
    z, _ = load(path)
    a, b = z['A'].requires_grad_(), z['B'].requires_grad_()
    same(low_band(a), z['low_A'], OPS)
    swapped = restyle_low(a, b)
    same(swapped, z['A_swapped'], OPS)
    same(restyle_low(b, a), z['B_swapped'], OPS)
    grad, none = torch.autograd.grad((swapped * z['upstream_A']).sum(), [a, b], allow_unused=True)
    same(grad, z['grad_A'], OPS)
    assert none is None
    same(restyle_low(z['odd_A'], z['odd_B']), z['odd_A_swapped'], OPS)
    same(restyle_low(z['odd_B'], z['odd_A']), z['odd_B_swapped'], OPS)
    # the swap leaves the high bands alone
    squares = swapped.unfold(2, 2, 2).unfold(3, 2, 2)
    signs = torch.tensor([[[1., 1.], [-1., -1.]], [[1., -1.], [1., -1.]], [[1., -1.], [-1., 1.]]])
    same(torch.einsum('nchwij,kij->nckhw', squares, signs)/2, z['high_A'], OPS)
    p, q = (z[k].requires_grad_() for k in ('scores_1', 'scores_2'))
    loss = half_way_kl(p, q)
    same(loss, z['kl'], OPS)
    for ours, key in zip(torch.autograd.grad(loss, [p, q]), ('kl_grad_1', 'kl_grad_2'), strict=True): same(ours, z[key], OPS)


@recorded('styleadv_vit_*.npz')
def test_published_form_of_the_vit(path):
    z, _ = load(path)
    maps = viewed_tokens(z['tokens'])
    for ours, key in zip(style(maps), ('mean', 'std'), strict=True): same(ours, z[key], OPS)
    same(viewed_back(maps, z['tokens']), z['back'], 0.)
    same(viewed_back(restyle(maps, z['adv_mean'], z['adv_std']), z['tokens']), z['restyled'], OPS)


def test_half_precision_is_measured_in_single():
    x = 300*torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    half = x.half()
    with torch.autocast('cpu', torch.bfloat16):
        for ours, exact in zip(style(half), style(half.float()), strict=True): assert torch.equal(ours, exact)
        assert restyle(half, *style(half)).dtype == torch.float16
    torch.testing.assert_close(restyle(half, *style(half)), half)


def test_what_has_no_style_is_named():
    with pytest.raises(ValueError, match=r'\(2, 3, 1, 1\) have one position'): style(torch.zeros(2, 3, 1, 1))
    with pytest.raises(ValueError, match='5 patches form no square'): viewed_tokens(torch.zeros(2, 6, 4))
