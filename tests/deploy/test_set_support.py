import numpy as np
import pytest
import torch
from fastai.learner import load_learner
from PIL import Image

from fsc_fastai.deploy import FewShotClassifier, NotFittedError, Preprocess
from tests.learners import hue_learner, novel_image


@pytest.fixture
def learn(root):
    learn = hue_learner(root)
    learn.fit(1)
    return learn


def test_set_support_and_predict_as_fastai(learn, root):
    with pytest.raises(NotFittedError, match='set_support'): learn.predict(novel_image(root))
    assert learn.set_support(root/'novel') is learn
    label, index, probabilities = learn.predict(novel_image(root))
    assert label == learn.classifier().classes_[index] and index == probabilities.argmax()
    assert probabilities.shape == (4,) and probabilities.sum() == pytest.approx(1)
    image, *rest = learn.predict(novel_image(root), with_input=True)
    assert image.size == (20, 20) and rest[0] == label
    learn.set_support(root/'novel', reject=1.)
    assert learn.predict(novel_image(root))[0] is None


def test_prediction_leaves_training_as_it_is_and_follows_it(learn, root):
    learn.set_support(root/'novel')
    learn.model.train()
    before = learn.predict(novel_image(root))[2]
    assert learn.model.training and all(p.requires_grad for p in learn.model.parameters())
    assert learn.classifier() is learn.classifier()
    learn.fit(1)
    after = learn.predict(novel_image(root))[2]
    assert not torch.equal(after, before)
    learn.set_support(root/'novel')
    torch.testing.assert_close(learn.predict(novel_image(root))[2], after)


def test_a_failed_set_support_keeps_the_examples(learn, root):
    learn.set_support(root/'novel')
    before = learn.predict(novel_image(root))[2]
    with pytest.raises(ValueError): learn.set_support([novel_image(root)], ['one'])
    assert torch.equal(learn.predict(novel_image(root))[2], before)


def test_an_exported_learner_can_take_examples_later(learn, tmp_path, root):
    learn.export('bare.pkl')
    loaded = load_learner(tmp_path/'bare.pkl')
    loaded.set_support(root/'novel')
    learn.set_support(root/'novel')
    torch.testing.assert_close(loaded.predict(novel_image(root))[2], learn.predict(novel_image(root))[2])
    assert FewShotClassifier.from_learner(loaded).preprocess == Preprocess.from_dls(learn.dls)


def test_export_holds_the_examples_but_not_the_training_images(learn, tmp_path, root):
    learn.set_support(root/'novel')
    learn.predict(novel_image(root))
    learn.export('small.pkl')
    weights = sum(p.nbytes for p in learn.model.parameters())
    # the classifier made of the examples holds a copy of the weights, which is made anew after loading
    assert (tmp_path/'small.pkl').stat().st_size < 1.2 * weights + 200_000


def test_classifier_of_a_learner_preprocesses_as_its_loaders(learn, root):
    files = sorted((root/'novel').rglob('*.png'))
    wanted = learn.dls.test_images(files).one_batch()[0]
    found = FewShotClassifier.from_learner(learn).preprocess(files)
    torch.testing.assert_close(found, wanted.as_subclass(torch.Tensor), rtol=0, atol=1e-5)


def test_transforms_that_no_bundle_can_hold_are_refused(root):
    from fastai.vision.augment import Resize
    from fasttransform.transform import Transform

    class Invert(Transform):
        def encodes(self, x: torch.Tensor): return 1 - x
    learn = hue_learner(root, dls_kwargs=dict(item_tfms=Resize(20, method='squish'), batch_tfms=[Invert()]))
    with pytest.raises(ValueError, match='do more than resize.*Invert|Invert'): learn.set_support(root/'novel')
    own = FewShotClassifier.from_learner(learn, Preprocess(20, 20))
    assert own.fit(root/'novel').fitted


@pytest.mark.parametrize('tfms', [dict(), dict(method='crop'), dict(method='pad')])
def test_preprocess_follows_the_resize_of_the_loaders(tfms, root):
    from fastai.vision.augment import Resize
    learn = hue_learner(root, dls_kwargs=dict(item_tfms=Resize(20, **tfms), batch_tfms=[]))
    found = Preprocess.from_dls(learn.dls)
    assert (found.size, found.resize, found.fit) == (20, 20, tfms.get('method', 'crop')) and found.std == (1, 1, 1)
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8))
    torch.testing.assert_close(found([wide]), learn.dls.test_images([wide]).one_batch()[0].as_subclass(torch.Tensor))


@pytest.mark.parametrize('bad', [dict(size=0), dict(size=32, resize=16), dict(size=5000), dict(fit='stretch'), dict(mean=(0, 0)),
                                 dict(std=(1, 0, 1)), dict(mean=(0, 0, float('nan'))), dict(mean=(0, 10**400, 0)), dict(size=32.),
                                 dict(std=(1, 1e-320, 1)), dict(mean=(True, 0, 0)), dict(size=True), dict(mean={}),
                                 dict(white=10**400), dict(white=1e-320), dict(white=0), dict(white=float('nan')),
                                 dict(white=True), dict(white=float('inf')), dict(white='4095'), dict(orient=1),
                                 dict(orient='yes')])
def test_preprocess_refuses_nonsense(bad):
    with pytest.raises(ValueError, match=f'{[*bad][-1]}=.*(wanted|choose from|at least|True or False)'): Preprocess(**bad)


def test_a_narrow_image_is_shrunk_before_it_is_padded_to_a_square(monkeypatch):
    import fsc_fastai.deploy.preprocess as module
    squares = []
    def resize(im, split_idx):
        squares.append(max(im.size))
        return im.resize((36, 36))
    monkeypatch.setattr(module, 'Resize', lambda *args, **kwargs: resize)
    Preprocess(32, fit='pad').image(Image.new('RGB', (1, 40_000)))
    Preprocess(32, fit='pad').image(Image.new('RGB', (3000, 2)))
    assert squares == [4096, 3000]
    monkeypatch.undo()
    # an eighth of it in the middle is white: where it lands shows that proportions are kept
    tall = Image.new('RGB', (40, 8192))
    tall.paste('white', (0, 4096 - 512, 40, 4096 + 512))
    seen = np.array(Preprocess(32, 32, fit='pad').image(tall))[:, 16].mean(1)
    assert np.flatnonzero(seen > 128).tolist() == [14, 15, 16, 17]
