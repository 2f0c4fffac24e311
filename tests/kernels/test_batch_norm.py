"Batch norms with a quick second derivative: values and derivatives of `F.batch_norm`, of first and second order"
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from fsc_fastai.kernels.batch_norm import batch_norm, quick_second_derivative

from .operations import Operations

SHAPES = (5, 3), (4, 3, 5), (4, 3, 2, 5), (2, 3, 2, 3, 2)


def tensors(shape, dtype=torch.double, offset=0., device='cpu'):
    x, w, b = torch.randn(shape, dtype=dtype) + offset, torch.randn(shape[1], dtype=dtype), torch.randn(shape[1], dtype=dtype)
    return [t.to(device).requires_grad_() for t in (x, w, b)]


def by_batch(norm, x, w, b, **kwargs): return norm(x, None, None, w, b, True, **kwargs)


def derivatives(norm, args):
    "First ones, and second ones through all of them"
    y = by_batch(norm, *args)
    first = torch.autograd.grad(y.sin().sum(), args, create_graph=True)
    return y, first, torch.autograd.grad(sum(d.cos().sum() for d in first), args)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_derivatives(shape, device):
    args = tensors(shape, device=device)
    def f(x, w, b): return by_batch(batch_norm, x, w, b, eps=.1)
    assert torch.autograd.gradcheck(f, args)
    assert torch.autograd.gradgradcheck(f, args)
    assert_close(derivatives(batch_norm, args), derivatives(F.batch_norm, args))


def test_far_from_zero_it_is_as_exact_as_torch_s(device):
    "In single precision, by the error to double precision"
    args = tensors((20, 3, 5, 5), offset=100., device=device)
    exact = derivatives(F.batch_norm, args)[2]
    def error(norm):
        found = derivatives(norm, [t.detach().float().requires_grad_() for t in args])[2]
        return torch.stack([(a - b).abs().max() / b.abs().max() for a, b in zip(found, exact, strict=True)])
    theirs = error(F.batch_norm)
    assert (theirs > 0).all() and (error(batch_norm) < 2 * theirs).all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.half], ids=str)
def test_maps_in_half_precision(dtype, device):
    x, w, b = tensors((8, 3, 4, 4), torch.float, device=device)
    half = [x.detach().to(dtype).requires_grad_(), w, b]
    ours, theirs = derivatives(batch_norm, half), derivatives(F.batch_norm, half)
    assert [t.dtype for t in ours[2]] == [dtype, torch.float, torch.float] == [t.dtype for t in theirs[2]]
    assert_close(ours[:2], theirs[:2])
    exact = derivatives(F.batch_norm, [x, w, b])[2]
    def errors(found): return [((a.float() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]
    for our, their in zip(errors(ours[2]), errors(theirs[2]), strict=True): assert 0 < our < 1.2 * their + 1e-3


def test_layout_of_maps(device):
    x, w, b = tensors((2, 3, 4, 4), device=device)
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert by_batch(batch_norm, last, w, b).is_contiguous(memory_format=torch.channels_last)
    assert_close(derivatives(batch_norm, [last, w, b]), derivatives(F.batch_norm, [x, w, b]))


def test_running_statistics():
    args = tensors((4, 3, 5))
    found = []
    for norm in (batch_norm, F.batch_norm):
        running = torch.randn(3, generator=torch.Generator().manual_seed(0)).double(), torch.ones(3).double()
        y = norm(args[0], *running, *args[1:], True, .3)
        found.append((y, *running, norm(args[0], *running, *args[1:], False)))
    assert_close(*found)


def second_derivative(y, x):
    "The operations that it takes by the input"
    first, = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    with Operations() as run: torch.autograd.grad(first.sin().sum(), x)
    return run.names


@pytest.mark.parametrize('kind', ['eval', 'no grad', 'not affine', 'subclass'])
def test_otherwise_torch_s(kind):
    class Other(torch.Tensor): pass
    x, w, b = tensors((4, 3, 5))
    x = x.detach().as_subclass(Other).requires_grad_() if kind == 'subclass' else x
    affine, training = ((None, None) if kind == 'not affine' else (w, b)), kind != 'eval'
    with torch.set_grad_enabled(kind != 'no grad'):
        running = [(torch.zeros(3).double(), torch.ones(3).double()) for _ in range(2)]
        found = []
        for norm, statistics in zip((batch_norm, F.batch_norm), running, strict=True):
            y = norm(x, *statistics, *affine, training)
            found.append((y, second_derivative(y, x) if kind != 'no grad' else None))
    (ours, our_operations), (theirs, their_operations) = found
    assert torch.equal(ours, theirs) and our_operations == their_operations


def test_errors_are_torch_s():
    for norm in (batch_norm, F.batch_norm):
        with pytest.raises(ValueError, match='more than 1 value per channel'): by_batch(norm, *tensors((1, 3)))


def test_no_third_derivative():
    args = tensors((4, 3))
    first, = torch.autograd.grad(by_batch(batch_norm, *args).sin().sum(), args[0], create_graph=True)
    second, = torch.autograd.grad(first.sin().sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'): second.sum().backward()


def test_norms_of_a_model():
    "torch's and timm's, which brings its activation along; hooks stay, and afterwards everything is as before"
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), timm.layers.BatchNormAct2d(4)).double()
    called = []
    model[1].register_forward_hook(lambda *_: called.append(1))
    x = torch.randn(2, 3, 4, 4, dtype=torch.double, requires_grad=True)
    theirs = model(x)
    slow = second_derivative(theirs, x)
    with quick_second_derivative(model):
        assert_close(model(x), theirs)
        quick = second_derivative(model(x), x)
        assert len(quick) < len(slow)
        with quick_second_derivative(model): model(x)  # once is enough
        assert second_derivative(model(x), x) == quick
    assert len(called) == 5 and model[1].num_batches_tracked == 5
    assert second_derivative(model(x), x) == slow
    assert not any('forward' in vars(m) for m in model)


def test_an_error_inside_leaves_nothing_behind():
    model = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match='more than 1 value'), quick_second_derivative(model): model(torch.randn(1, 3))
    assert 'forward' not in vars(model[0])
    x = torch.randn(2, 3, requires_grad=True)
    assert second_derivative(model(x), x) == second_derivative(nn.Sequential(nn.BatchNorm1d(3))(x), x)
