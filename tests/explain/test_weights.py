"Equation (2) and equation (7)"
import math

import pytest
import torch
from torch.testing import assert_close

from fsc_fastai.explain import relevance_start, relevance_weights


def test_equation_2_by_hand():
    # P = (1/2, 1/4, 1/4) of three classes
    found = relevance_start(torch.tensor([[math.log(2), 0., 0.]]), eps=0.)
    assert_close(found, torch.tensor([[math.log(2), math.log(2/3), math.log(2/3)]]))
    assert_close(relevance_start(torch.full((2, 5), 3.), 0.), torch.zeros(2, 5))  # of chance


@pytest.mark.parametrize('dtype', [torch.float32, torch.half, torch.bfloat16])
def test_certainty_stays_finite(dtype):
    found = relevance_start(torch.tensor([[1e4, 0., -1e4]], dtype=dtype))
    assert found.dtype == torch.float32 and found.isfinite().all() and found[0, 0] > 0 > found[0, 1]


def test_one_class_is_an_error():
    with pytest.raises(ValueError, match='two classes'): relevance_start(torch.zeros(3, 1))


def test_weights_are_between_0_and_2_and_reach_them_at_each_position():
    R = torch.randn(3, 5, 4, 2, 2)
    w = relevance_weights(R)
    assert w.min() >= 0 and w.max() <= 2 and not w.requires_grad
    assert_close((w - 1).abs().amax(2), torch.ones(3, 5, 2, 2))
    assert_close((relevance_weights(R, 'map') - 1).abs().amax((2, 3, 4)), torch.ones(3, 5))
    assert_close((relevance_weights(R[..., 0, 0]) - 1).abs().amax(2), torch.ones(3, 5))  # nodes


def test_without_relevance_the_weight_is_1():
    R = torch.zeros(2, 2, 3, 2, 2)
    R[0, 0, 0] = -5
    assert_close(relevance_weights(R)[1], torch.ones(2, 3, 2, 2))
    assert_close(relevance_weights(R)[0, 0, 0], torch.zeros(2, 2))
