"Convolutions on small maps: the same values and derivatives as torch's, of first and second order"
import pytest
import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_input
from torch.testing import assert_close

from fsc_fastai.kernels.small_conv import FEWEST, KeptKernel, SmallConv2d, conv_small, conv_small_input

from .operations import Operations

SHAPES = [((3, 3), 1, 3), ((2, 2), 1, 3), ((1, 1), 1, 3), ((4, 3), (1, 0), 3), ((4, 4), 2, 3), ((3, 3), 0, 2), ((2, 3), 1, 1)]


def tensors(size, kernel, n=FEWEST):
    shapes = (n, 3, *size), (4, 3, kernel, kernel), (4,)
    return [torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize('size,padding,kernel', SHAPES, ids=str)
def test_first_order(size, padding, kernel):
    args = tensors(size, kernel)
    with Operations() as run: ours = conv_small(*args, padding)
    theirs = F.conv2d(*args, padding=padding)
    assert_close(ours, theirs)
    assert run.names and 'convolution' not in run.names
    g = torch.randn_like(ours)
    assert_close(torch.autograd.grad(ours, args, g), torch.autograd.grad(theirs, args, g))


@pytest.mark.parametrize('n', [1, 5])
@pytest.mark.parametrize('size,padding,kernel', [*SHAPES, ((6, 6), 1, 3)], ids=str)
def test_a_kept_kernel(size, padding, kernel, n):
    "By 9 products on maps of 2×2"
    x, weight, bias = tensors(size, kernel, n)
    ours, theirs = KeptKernel(weight, bias, padding)(x), F.conv2d(x, weight, bias, padding=padding)
    assert_close(ours, theirs)
    assert_close(KeptKernel(weight, None, padding)(x), F.conv2d(x, weight, padding=padding))
    assert_close(torch.autograd.grad(ours.sum(), x), torch.autograd.grad(theirs.sum(), x))


@pytest.mark.parametrize('size,padding,kernel', SHAPES, ids=str)
def test_transposed(size, padding, kernel):
    x, w, _ = tensors(size, kernel)
    g = torch.randn_like(F.conv2d(x, w, padding=padding)).requires_grad_()
    ours, theirs = conv_small_input(x.shape, w, g, padding), conv2d_input(x.shape, w, g, padding=padding)
    assert_close(ours, theirs)
    up = torch.randn_like(ours)
    assert_close(torch.autograd.grad(ours, (w, g), up), torch.autograd.grad(theirs, (w, g), up))


def test_second_order():
    args = tensors((3, 2), 3)
    assert torch.autograd.gradgradcheck(lambda *args: conv_small(*args, 1), args, fast_mode=True)
    x, w, _ = tensors((2, 3), 3)
    g = torch.randn_like(F.conv2d(x, w, padding=1)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda w, g: conv_small_input(x.shape, w, g, 1), (w, g), fast_mode=True)


def test_larger_fewer_and_coarser_maps_are_torch_s():
    "Bit for bit"
    x, w = torch.randn(FEWEST, 3, 6, 6), torch.randn(4, 3, 3, 3)
    assert torch.equal(conv_small(x, w, padding=1), F.conv2d(x, w, padding=1))
    few = x[1:, :, :3, :3].contiguous()
    assert torch.equal(conv_small(few, w, padding=1), F.conv2d(few, w, padding=1))
    small = x[..., :3, :3].bfloat16()
    assert torch.equal(conv_small(small, w.bfloat16(), padding=1), F.conv2d(small, w.bfloat16(), padding=1))
    g = torch.randn(FEWEST, 4, 6, 6)
    assert torch.equal(conv_small_input(x.shape, w, g, 1), conv2d_input(x.shape, w, g, padding=1))


def test_frozen_input_or_weight():
    x, w, b = tensors((3, 3), 3)
    ours, theirs = conv_small(x.detach(), w, b, 1), F.conv2d(x, w, b, padding=1)
    assert_close(torch.autograd.grad(ours.sum(), w), torch.autograd.grad(theirs.sum(), w))
    assert_close(conv_small(x, w.detach(), b, 1), F.conv2d(x, w, b, padding=1))


def test_under_autocast_it_is_torch_s():
    conv, x = SmallConv2d(3, 4, 3, padding=1), torch.randn(FEWEST, 3, 3, 3)
    with torch.autocast('cpu', torch.bfloat16): y = conv(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32
