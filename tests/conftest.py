"One thread and a fixed seed for every test: the suite runs several processes on few cores"
import os

import matplotlib
import pytest
import torch

matplotlib.use('Agg')
os.environ.setdefault('PYTHONHASHSEED', '0')


@pytest.fixture(autouse=True)
def _one_thread_fixed_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def full_single_precision(monkeypatch):
    "Convolutions on a GPU as exact as on the CPU"
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def device(request, full_single_precision):
    "Where a test computes"
    return request.param
