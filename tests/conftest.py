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


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    "Where a test computes; in full single precision there"
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    return request.param
