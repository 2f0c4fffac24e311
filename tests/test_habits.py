"What users of fastai do with learners and loaders: it works, or says at once what to use"
import matplotlib.pyplot as plt
import pytest
import torch
from fastai.data.transforms import get_image_files
from fastai.metrics import accuracy, error_rate
from fastai.vision.augment import RandomResizedCrop
from torch.testing import assert_close

from tests.learners import hue_learner
from tests.methods.toys import METHODS


@pytest.fixture
def learn(hues): return hue_learner(hues, 'proto', dls_kwargs=dict(n_episodes=2))


def test_tta_averages_augmented_views_with_the_plain_ones(learn):
    plain, y = learn.get_preds()
    scores, targets = learn.tta(n=2)
    assert scores.shape == plain.shape and torch.equal(targets, y) and not torch.allclose(scores, plain)
    assert_close(learn.tta(n=2, beta=1.)[0], plain)
    assert_close(learn.get_preds()[0], plain)


def test_tta_takes_other_item_transforms(learn):
    "The images that the loader keeps were made by its own"
    fixed, _ = learn.tta(n=1, beta=0., batch_tfms=learn.dls.valid.after_batch.fs, item_tfms=RandomResizedCrop(20, min_scale=.1))
    assert not torch.allclose(fixed, learn.get_preds()[0], atol=1e-3)


def test_single_images_need_examples_first(learn, hues):
    files = get_image_files(hues/'novel')[:5]
    dl = learn.dls.test_dl(files)
    for ask in (learn.get_preds, learn.validate, learn.show_results):
        with pytest.raises(TypeError, match='learn.set_support.*predict_proba'): ask(dl=dl)
    assert len(learn.validate()) == 3  # as usable as before
    with pytest.raises(TypeError, match='pairs.*evaluate'): learn.dls.test_dl(files, with_labels=True)
    labelled = learn.dls.test_dl([(f, f.parent.name) for f in get_image_files(hues/'novel')], with_labels=True)
    assert learn.get_preds(dl=labelled)[0].shape == (2*3*3, 3)


def test_losses_of_every_query(hues):
    for method in METHODS:
        learn = hue_learner(hues, method, dls_kwargs=dict(n_episodes=2))
        record = learn.validate()
        _, _, losses = learn.get_preds(with_loss=True)
        assert losses.shape == (2*3*3,) and losses.mean() == pytest.approx(record[0], rel=1e-4)
        assert learn.loss_func.reduction == 'mean'


@pytest.mark.parametrize('method', METHODS)
def test_metrics_of_fastai(hues, method):
    learn = hue_learner(hues, method, metrics=[accuracy, error_rate], dls_kwargs=dict(n_episodes=2))
    _, right, wrong = learn.validate()
    scores, y = learn.get_preds()
    assert right == pytest.approx((scores.argmax(1) == y).float().mean().item()) and wrong == pytest.approx(1 - right)


def test_show_batch_unique_shows_views_of_one_image(learn):
    drawn = []
    dls = learn.dls
    dls.train.show_batch(unique=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('fsc_fastai.data.episode.Episode.show', lambda episode, **kwargs: drawn.append(episode) or plt.figure())
        dls.valid.show_batch(unique=True)
    episode, = drawn
    for images in (episode.support_x.unflatten(0, (3, -1)), episode.query_x.unflatten(0, (3, -1))):
        assert (images == images[:, :1]).all()
    assert not torch.equal(episode.support_x[0], episode.support_x[-1])
    dls.train.one_batch()
    learn.fit(1)


def test_decode_batch_names_the_classes(learn):
    b = learn.dls.valid.one_batch()
    decoded = learn.dls.valid.decode_batch(b, max_n=4)
    assert [name for _, name in decoded] == [learn.dls.vocab[b.classes[i]] for i in (0, 0, 1, 1)]
    assert decoded[0][0].shape == (3, 20, 20)


def test_the_device_is_one_whose_type_can_be_asked(learn): assert learn.dls.device.type == 'cpu'
