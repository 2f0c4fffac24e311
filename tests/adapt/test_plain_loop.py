"What adapts the encoder gives the scores of a plain loop that copies the model for each episode, and encodes every step anew"
import pytest
import torch

from benchmarks.plain import plain_fine_tune, plain_pmf
from fsc_fastai.adapt import PMF, FineTune
from fsc_fastai.methods import create_fsc_model


@pytest.fixture(params=['conv4', 'resnet10'], scope='module')
def model(request):
    torch.manual_seed(0)
    return create_fsc_model('proto', request.param, n_way=3, img_size=32).eval().double()


def episode(shots, seed=1):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(len(shots)).repeat_interleave(torch.tensor(shots))
    y, query_y = y[torch.randperm(len(y), generator=g)], torch.arange(len(shots)).repeat_interleave(2)
    draw = lambda y: torch.randn(len(y), 3, 32, 32, generator=g, dtype=torch.float64) + y[:, None, None, None]
    return draw(y), y, draw(query_y)


def same(adapted, x, y, query, plain):
    with torch.no_grad(): scores = adapted(x, y, query)
    torch.testing.assert_close(scores, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize('shots', [(2, 2, 2), (1, 3, 2)])
@pytest.mark.parametrize('augment', [False, True])
def test_pmf(model, shots, augment):
    x, y, query = episode(shots)
    plain = plain_pmf(model, x, y, query, 3, 1e-3, augment, seed=5)
    same(PMF(steps=3, lr=1e-3, augment=augment, seed=5)(model, x, y), x, y, query, plain)
    assert not torch.allclose(plain, plain_pmf(model, x, y, query, 0, 1e-3), atol=1e-3)  # it was tuned


@pytest.mark.parametrize('shots', [(2, 2, 2), (1, 3, 2)])
@pytest.mark.parametrize('freeze', [False, True])
def test_fine_tuning(model, shots, freeze):
    x, y, query = episode(shots)
    plain = plain_fine_tune(model, x, y, query, 4, freeze, seed=5)
    same(FineTune(steps=4, freeze=freeze, seed=5)(model, x, y), x, y, query, plain)
    assert not torch.allclose(plain, plain_fine_tune(model, x, y, query, 4, freeze, seed=6))  # order and start count
