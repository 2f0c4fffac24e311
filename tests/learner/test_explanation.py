"`learn.explain` for every method, on an episode of the learner and on images of one's own"
import pytest
import torch
from fastai.vision.augment import Resize
from fastai.vision.core import imagenet_stats
from PIL import Image

from tests.learners import hue_learner
from tests.methods.toys import METHODS


@pytest.mark.parametrize('method', METHODS)
def test_explains_a_validation_episode(root, method):
    learn = hue_learner(root, method)
    learn.model.train().encoder.eval()  # as with batch norms that are frozen
    found = learn.explain()
    assert found.query.shape == (3, 3, 3, 20, 20) and found.scores.shape == (3, 3) and found.query.abs().sum() > 0
    assert (found.attention is not None) == (method == 'can') and found.query_y.tolist() == [0, 1, 2]
    assert learn.model.training and not learn.model.encoder.training
    assert found.plot().axes
    assert len(repr(found)) < 1600 and 'query=Tensor(3, 3, 3, 20, 20)' in repr(found)


def test_explains_images_of_the_user(root):
    learn = hue_learner(root, 'proto')
    files = [sorted((root/'novel'/f'novel{c}').glob('*.png')) for c in (0, 1)]
    found = learn.explain(files[0][5], {'first': files[0][:3], 'second': files[1][:1]}, explain_support=True)
    assert found.query.shape == (1, 2, 3, 20, 20) and found.support.shape == (1, 2, 4, 3, 20, 20)
    assert found.classes == ['first', 'second']
    assert found.plot_support().axes
    torch.testing.assert_close(found.scores, learn.explain([files[0][5]], {'a': files[0][:3], 'b': files[1][:1]}).scores)


def test_pictures_have_the_size_of_the_files(root, tmp_path):
    learn = hue_learner(root, 'proto', dls_kwargs=dict(item_tfms=Resize(24, method='crop')))
    files = [sorted((root/'novel'/f'novel{c}').glob('*.png')) for c in (0, 1)]
    wide = tmp_path/'wide.png'
    Image.new('RGB', (1536, 768), 'red').save(wide)
    support = {'first': files[0][:2], 'second': files[1][:1]}
    found = learn.explain(wide, support, explain_support=True)
    of_support, (original,) = found.originals
    assert [o.image.shape for o in of_support] == [(20, 20, 3)] * 3 and original.image.shape == (384, 768, 3), 'half as large'
    assert original.box == pytest.approx((192 + 32, 32, 192 + 352, 352)), 'the middle 20 of 24 pixels of the middle square'
    fig = found.plot(cmap='PuOr_r', save=tmp_path/'wide.svg')
    assert fig.axes[4].images[0].get_array().shape == (384, 768, 3) and (tmp_path/'wide.svg').exists()
    assert found.plot_support().axes[1].images[0].get_array().shape == (20, 20, 3)
    assert learn.explain().originals[1][0].image.shape == (20, 20, 3), 'of a validation episode too'


def test_a_validation_episode_is_drawn_over_its_own_images(root):
    learn = hue_learner(root, 'proto')
    found = learn.explain()
    mean, std = (torch.tensor(o)[:, None, None] for o in imagenet_stats)
    seen = found.images[2] * std + mean
    for x, original in zip(seen, found.originals[1], strict=True):
        assert abs(x.mean((1, 2)).numpy() - original.image.mean((0, 1))).max() < .03


def test_why_this_class_and_not_that(root):
    learn = hue_learner(root, 'can')
    names = learn.explain().classes
    found = learn.explain(against=names[1])
    assert found.against == 1 and found.query[:, 1].abs().max() == 0 < found.query[:, 0].abs().max()
    assert names[1] not in [ax.get_title() for ax in found.plot().axes[:5]]
    with pytest.raises(ValueError, match="against='bee': the classes here are 'val"): learn.explain(against='bee')


@pytest.mark.parametrize('method', ['proto', 'matching', 'can'])
def test_a_pair_of_images(root, method):
    learn = hue_learner(root, method)
    learn.model.train()
    a, b, *others = sorted((root/'novel'/'novel0').glob('*.png'))[:4]
    found = learn.explain_pair(a, b, n_components=None, grid=5)
    assert found.relevance.sum().item() == pytest.approx(found.similarity, rel=.1) and learn.model.training
    assert [o.image.shape for o in found.images] == [(20, 20, 3)] * 2 and found.plot(names=('a', 'b')).axes
    if method == 'proto': assert learn.explain_pair(a, b, centre=others).similarity < found.similarity
