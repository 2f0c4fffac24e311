"A learner that `fsc_train` made of images that the tests make"
import pytest

from fsc_fastai.commands.fsc_train import fsc_train
from tests.learners import SIZE, write_hues

SMALL = dict(arch='conv4', n_way=3, n_shot=2, n_query=3, n_episodes=4, epochs=1, pretrain_epochs=1, size=SIZE)


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    "A folder of images, `hues`, and the learner that `fsc_train` made of them: `learner.pkl` and `bundle`"
    root = tmp_path_factory.mktemp('commands')
    write_hues(root/'hues')
    fsc_train(str(root/'hues'), method='proto', out=root/'learner.pkl', bundle=root/'bundle', **SMALL)
    return root
