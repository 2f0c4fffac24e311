"The order of callbacks: one table"
import ast
import importlib
import inspect
from pathlib import Path

import pytest
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import ParamScheduler
from fastai.callback.training import GradientAccumulation
from fastai.learner import Recorder

import fsc_fastai
from fsc_fastai.callback import order
from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.callback.lft import FTCallback, LFTCallback
from fsc_fastai.callback.resume import ResumeFit

PACKAGE = Path(fsc_fastai.__file__).parent
ROOMS = 'callback/**', 'learner', 'reproduce'
OURS = [cls for path in sorted(p for room in ROOMS for p in PACKAGE.glob(f'{room}/*.py'))
        for module in ['.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts)]
        for cls in vars(importlib.import_module(module)).values()
        if inspect.isclass(cls) and issubclass(cls, Callback) and cls.__module__ == module and 'order' in vars(cls)]


@pytest.mark.parametrize('cls', OURS, ids=lambda cls: cls.__name__)
def test_every_callback_takes_its_turn_from_the_table(cls):
    body = ast.parse(inspect.getsource(cls)).body[0].body
    values = [node.value for node in body if isinstance(node, ast.Assign) and node.targets[0].id == 'order']
    assert [getattr(value, 'id', None) in order.__all__ for value in values] == [True], 'a name of callback/order.py'


def test_turns_stand_in_the_table_in_their_order_and_are_explained():
    turns = [getattr(order, name) for name in order.__all__]
    assert turns == sorted(set(turns))
    assert all(f'| `{name}` |' in order.__doc__ for name in order.__all__)
    assert {LRPGuidedCallback, FTCallback, ResumeFit} <= set(OURS) and LFTCallback.order == FTCallback.order


def test_the_turns_of_fastai_are_where_the_table_says():
    loss = [order.OTHER_WEIGHTS, order.GUIDED, order.ADDED, order.TRANSFORMED]
    assert max(loss) < GradientAccumulation.order == 6 < MixedPrecision.order == 10
    assert (Recorder.order, ParamScheduler.order) == (50, 60) and 60 < order.BEST < order.RESUME
