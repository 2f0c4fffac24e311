import pytest
from fastcore.script import CliError

from fsc_fastai.commands.fsc_train import fsc_train

from .conftest import SMALL


def test_lrp_trains_too(trained):
    fsc_train(str(trained/'hues'), method='relation', out=trained/'lrp.pkl', lrp=True, **SMALL)
    assert (trained/'lrp.pkl').exists()


@pytest.mark.parametrize('call, named', [
    (lambda root: fsc_train(str(root/'nowhere')), 'nowhere'),
    (lambda root: fsc_train(str(root/'hues'), **(SMALL | dict(arch='conv5'))), 'conv4'),
    (lambda root: fsc_train(str(root/'hues'), **(SMALL | dict(n_way=50))), 'n_way=50'),
])
def test_what_the_user_can_mend_is_one_line(trained, call, named):
    with pytest.raises(CliError, match=named): call(trained)
