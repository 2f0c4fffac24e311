"One thread and a fixed seed for every test: the suite runs several processes on few cores"
import os
from collections import Counter

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from fastai.torch_core import set_seed

from tests.gpu import GPU
from tests.learners import write_hues

matplotlib.use('Agg')
os.environ.setdefault('PYTHONHASHSEED', '0')


TRACED = 4


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Lines count as covered by the first cells of a test alone. To trace them takes 40 % more time, and further cells run
    much the same lines"""
    cells = Counter()
    for item in items:
        name = item.nodeid.partition('[')[0]
        cells[name] += 1
        if cells[name] > TRACED: item.add_marker('no_cover')


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    "What a fixture of a whole file draws does not depend on the tests before it"
    torch.set_num_threads(1)
    set_seed(0)


@pytest.fixture(autouse=True)
def _fixed_seed():
    "What a test draws does not depend on whether it was the one that had such a fixture made"
    set_seed(0)


@pytest.fixture(autouse=True)
def _no_figures():
    "Whatever a test draws is closed behind it"
    yield
    plt.close('all')


@pytest.fixture
def root(tmp_path):
    "Where `hue_learner` makes its images, in a folder that a test has for itself"
    return tmp_path/'hues'


@pytest.fixture(scope='module')
def hues(tmp_path_factory):
    "Images that the tests of a file share, and none changes"
    return write_hues(tmp_path_factory.mktemp('hues')/'images')


@pytest.fixture
def full_single_precision(monkeypatch):
    "Convolutions on a GPU as exact as on the CPU"
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


@pytest.fixture(params=['cpu', pytest.param(GPU, marks=pytest.mark.gpu, id='gpu')])
def device(request, full_single_precision):
    "Where a test computes"
    return request.param
