"Convolutions on small maps: the same values and derivatives as torch's, of first and second order"
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fsc_fastai.models.small_maps import SmallConv2d, conv_small

SHAPES = [((3, 3), 1, 3), ((2, 2), 1, 3), ((1, 1), 1, 3), ((4, 3), (1, 0), 3), ((4, 4), 2, 3), ((3, 3), 0, 2), ((2, 3), 1, 1)]


def tensors(size, kernel):
    shapes = (2, 3, *size), (4, 3, kernel, kernel), (4,)
    return [torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize('size,padding,kernel', SHAPES, ids=str)
def test_first_order(size, padding, kernel):
    args = tensors(size, kernel)
    ours, theirs = conv_small(*args, padding), F.conv2d(*args, padding=padding)
    assert_close(ours, theirs)
    g = torch.randn_like(ours)
    assert_close(torch.autograd.grad(ours, args, g), torch.autograd.grad(theirs, args, g))


def test_second_order():
    args = tensors((3, 2), 3)
    assert torch.autograd.gradgradcheck(lambda *args: conv_small(*args, 1), args)


def test_frozen_input_or_weight():
    x, w, b = tensors((3, 3), 3)
    ours, theirs = conv_small(x.detach(), w, b, 1), F.conv2d(x, w, b, padding=1)
    assert_close(torch.autograd.grad(ours.sum(), w), torch.autograd.grad(theirs.sum(), w))
    assert_close(conv_small(x, w.detach(), b, 1), F.conv2d(x, w, b, padding=1))


def test_under_autocast_it_is_torch_s():
    conv, x = SmallConv2d(3, 4, 3, padding=1), torch.randn(2, 3, 3, 3)
    with torch.autocast('cpu', torch.bfloat16): y = conv(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32
