"Plain descent, and real episodes of another domain"
import pytest
import torch

from tests.learners import hue_loaders, write_hues


@pytest.fixture
def plain_descent(monkeypatch):
    "γ, β and the auxiliary classifier descend the plain gradient, so that their change is minus the gradient at lr=1"
    monkeypatch.setattr(torch.optim, 'Adam', torch.optim.SGD)


@pytest.fixture
def other_domain(tmp_path):
    return hue_loaders(write_hues(tmp_path/'other', seed=1))
