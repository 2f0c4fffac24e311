"The classifier of all training classes, beside the model"
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from fsc_fastai.callback.parts.global_classifier import GlobalClassifier, class_numbers
from fsc_fastai.data.episode import EpisodeLabel

from ..episodes import build_model


def make(**kwargs): return GlobalClassifier(build_model(), 6, **kwargs)


def test_it_learns_what_the_model_does_not_see():
    c, maps, y = make(), torch.randn(5, 64, 2, 2, dtype=torch.float64).requires_grad_(), torch.arange(5)
    c.loss(maps, y).backward()
    assert maps.grad.abs().max() > 0 and c.weight.grad is None
    maps.grad = None
    c.learn(maps, y)
    c.learn(2*maps, y)
    exact = [torch.autograd.grad(F.cross_entropy(F.linear(k*maps.detach().mean((2, 3)), c.weight, c.bias), y), c.weight)[0]
             for k in (1, 2)]
    torch.testing.assert_close(torch.stack([w for w, _ in c.kept]), torch.stack(exact))
    before, loss = c.weight.detach().clone(), c.loss(maps, y).detach()
    c.step(1e-2)
    assert maps.grad is None and not c.kept and c.loss(maps, y) < loss
    # Adam's first step has the learning rate's length wherever there is a gradient
    torch.testing.assert_close((c.weight - before).abs().max(), torch.tensor(1e-2, dtype=torch.float64), rtol=1e-4, atol=0)
    again = c.weight.detach().clone()
    c.learn(maps, y)
    c.drop()
    c.step(1.)
    assert torch.equal(c.weight, again)


def test_it_starts_alike_everywhere_and_draws_nothing():
    model = build_model()
    state = torch.get_rng_state()
    a, b = (GlobalClassifier(model, 6) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(a.weight, b.weight) and a.weight.std() > 0
    maps, y = torch.randn(5, 64, 2, 2, dtype=torch.float64), torch.arange(5)
    for _ in range(2): a.learn(maps, y); a.step(1e-2)
    b.load_state_dict(deepcopy(a.state_dict()))
    for c in (a, b): c.learn(maps, y); c.step(1e-2)
    assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)
    with pytest.raises(ValueError, match=r'\(6, 64\) \(classes, features\), this one \(7, 64\)'):
        GlobalClassifier(model, 7).load_state_dict(a.state_dict())


def test_labels_among_all_classes():
    y = torch.tensor([0, 1, 1])
    assert class_numbers(EpisodeLabel(y, classes=(4, 2)), 6, 'X', 'do this').tolist() == [4, 2, 2]
    with pytest.raises(ValueError, match='X needs labels that carry the classes.*do this'):
        class_numbers(torch.tensor([0]), 6, 'X', 'do this')
    with pytest.raises(ValueError, match='X knows 4 classes, an episode has number 4'):
        class_numbers(EpisodeLabel(y, classes=(4, 2)), 4, 'X', '')
