"Whatever answers, does so in eval mode, and leaves each module in its own mode and each buffer as it was"
import shutil

import pytest
import torch

from fsc_fastai.learner.episode_scores import encode_images
from fsc_fastai.methods import RelationNet
from tests.learners import hue_learner, novel_image
from tests.methods.toys import METHODS

CASES = [*METHODS, 'dropout']
ANSWERS = {
    'evaluate': lambda learn, root: learn.evaluate(n_episodes=3, n_query=2).attrs['episodes'],
    'confusion': lambda learn, root: learn.confusion('novel', n_episodes=3, n_query=2),
    'accuracy_by_class': lambda learn, root: learn.accuracy_by_class('novel', n_episodes=3, n_query=2),
    'feature_statistics': lambda learn, root: learn.feature_statistics(),
    'explain': lambda learn, root: learn.explain().scores,
    'predict': lambda learn, root: learn.set_support(three_of(root)).predict(
        novel_image(root))[2],
    'encode_images': lambda learn, root: encode_images(learn.model, learn.dls.domains['novel'].images()),
}


class Dropping(RelationNet):
    "A method with dropout"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.dropout = torch.nn.Dropout(.5)

    def encode(self, x): return self.dropout(super().encode(x))


def three_of(root):
    "A folder with three of the novel classes, as many as a graph network of three ways knows"
    folder = root.parent/'three'
    for i in range(3):
        if not (folder/f'novel{i}').exists(): shutil.copytree(root/'novel'/f'novel{i}', folder/f'novel{i}')
    return folder


@pytest.mark.parametrize('method', CASES)
def test_in_eval_mode_and_as_it_was(tmp_path, method):
    root = tmp_path/'hues'
    learn = hue_learner(root, Dropping if method == 'dropout' else method)
    learn.model.eval()
    wanted = {name: str(answer(learn, root)) for name, answer in ANSWERS.items()}
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.model.train()
    frozen = [m for m in learn.model.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for m in frozen: m.eval()
    modes = [m.training for m in learn.model.modules()]
    for name, answer in ANSWERS.items():
        assert str(answer(learn, root)) == wanted[name], name
        assert [m.training for m in learn.model.modules()] == modes, name
        assert all(torch.equal(before[k], v) for k, v in learn.model.state_dict().items()), name


def test_an_error_in_an_evaluation_leaves_the_modes_too(tmp_path):
    learn = hue_learner(tmp_path/'hues')
    learn.model.train()
    learn.model.classify = lambda f_p: 1/0
    for ask in (learn.evaluate, lambda **kwargs: learn.confusion('novel', **kwargs)):
        with pytest.raises(ZeroDivisionError) as kept: ask(n_episodes=2, n_query=2)  # while the traceback keeps its frames
        assert learn.model.training and kept
