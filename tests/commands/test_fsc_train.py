
from fsc_fastai.commands.fsc_train import fsc_train

from .conftest import SMALL


def test_lrp_trains_too(trained):
    fsc_train(str(trained/'hues'), method='relation', out=trained/'lrp.pkl', lrp=True, **SMALL)
    assert (trained/'lrp.pkl').exists()
