"`learn.explain` for every method, on an episode of the learner and on images of one's own"
import matplotlib.pyplot as plt
import pytest
import torch

from tests.learners import hue_learner


@pytest.fixture
def root(tmp_path): return tmp_path/'hues'


@pytest.mark.parametrize('method', ['relation', 'can', 'gnn', 'proto', 'matching'])
def test_explains_a_validation_episode(root, method):
    learn = hue_learner(root, method)
    learn.model.train().encoder.eval()  # as with batch norms that are frozen
    found = learn.explain()
    assert found.query.shape == (3, 3, 3, 20, 20) and found.scores.shape == (3, 3) and found.query.abs().sum() > 0
    assert (found.attention is not None) == (method == 'can') and found.query_y.tolist() == [0, 1, 2]
    assert learn.model.training and not learn.model.encoder.training
    assert found.plot().axes
    assert len(repr(found)) < 600 and 'query=Tensor(3, 3, 3, 20, 20)' in repr(found)
    plt.close('all')


def test_explains_images_of_the_user(root):
    learn = hue_learner(root, 'proto')
    files = [sorted((root/'novel'/f'novel{c}').glob('*.png')) for c in (0, 1)]
    found = learn.explain(files[0][5], {'first': files[0][:3], 'second': files[1][:1]}, explain_support=True)
    assert found.query.shape == (1, 2, 3, 20, 20) and found.support.shape == (1, 2, 4, 3, 20, 20)
    assert found.classes == ['first', 'second']
    assert found.plot_support().axes
    plt.close('all')
    torch.testing.assert_close(found.scores, learn.explain([files[0][5]], {'a': files[0][:3], 'b': files[1][:1]}).scores)


def test_half_an_episode_is_refused(root):
    with pytest.raises(ValueError, match='both'): hue_learner(root).explain(torch.rand(1, 3, 20, 20))
