import numpy as np
import pytest
import torch

from fsc_fastai.deploy import Preprocess
from fsc_fastai.explain.to_pixels import explain_images

from .toys import COLOURS, METHODS, classifier, examples, picture


@pytest.mark.parametrize('method', METHODS)
def test_every_class_has_a_heatmap_of_the_image(method):
    known = classifier(method).fit(*examples())
    before = {k: v.clone() for k, v in known.model.state_dict().items()}
    found = known.explain(picture('red', 30))
    assert len(repr(found)) < 700 and "ndarray(32, 32)" in repr(found)
    assert found.relevance.keys() == set(COLOURS) and found.prediction.label == known.predict(picture('red', 30)).label
    assert all(R.shape == (32, 32) and np.isfinite(R).all() for R in found.relevance.values())
    assert not np.allclose(found.relevance['red'], found.relevance['blue'])
    assert found.image.size == (32, 32) and found.heatmap().size == found.heatmap('blue').size == found.picture.size == (40, 40)
    assert all(torch.equal(v, before[k]) for k, v in known.model.state_dict().items())
    with pytest.raises(KeyError): found.heatmap('pink')


@pytest.mark.parametrize('method', ['can', 'proto', 'matching'])
def test_relevance_is_that_of_the_episode_where_no_statistics_are_replaced(method):
    known, x = classifier(method).fit(*examples()), picture('red', 30)
    images, labels = examples()
    support_y = torch.tensor([known.support.classes.index(c) for c in labels])
    wanted = explain_images(known.model, known.preprocess(images), support_y, known.preprocess([x]), support=False)
    found = known.explain(x).relevance
    for i, c in enumerate(known.support.classes):
        of_class = wanted.query[0, i].sum(0).numpy()
        assert np.allclose(found[c], of_class, atol=1e-3 * np.abs(of_class).max())


def test_one_image_only():
    with pytest.raises(TypeError, match='one image'): classifier().fit(*examples()).explain(examples()[0])


@pytest.mark.parametrize('fit', ['squish', 'crop', 'pad'])
def test_relevance_lies_where_the_model_looked(fit):
    "A spot in the image is found again where `box` says that its pixel of the model is"
    preprocess = Preprocess(20, resize=24, fit=fit)
    for size, spot in (((200, 100), (90, 40)), ((90, 180), (40, 100)), ((60, 60), (20, 35))):
        im = np.zeros((size[1], size[0], 3), np.uint8)
        im[spot[1]:spot[1] + 16, spot[0]:spot[0] + 16] = 255
        seen = preprocess.pixels(im).float().mean(0)
        rows, columns = torch.meshgrid(torch.arange(20) + .5, torch.arange(20) + .5, indexing='ij')
        y, x = ((seen * at).sum().item() / seen.sum().item() for at in (rows, columns))
        left, top, right, bottom = preprocess.box(preprocess.open(im))
        assert left + x / 20 * (right - left) == pytest.approx(spot[0] + 8, abs=2)
        assert top + y / 20 * (bottom - top) == pytest.approx(spot[1] + 8, abs=2)


def test_why_this_class_and_not_that():
    known, x = classifier().fit(*examples()), picture('red', 30)
    found = known.explain(x, against='blue')
    assert 'blue' not in found.relevance and found.against == 'blue' and found.heatmap().size == (40, 40)
    assert np.allclose(found.relevance['red'], -known.explain(x, against='red').relevance['blue'], atol=1e-6)
    with pytest.raises(KeyError): known.explain(x, against='pink')


def test_a_pair_of_images():
    known = classifier('proto', distance='cosine').fit(*examples())
    found = known.explain_pair(picture('red', 30), picture('red', 31), n_components=None)
    assert found.similarity == pytest.approx(found.relevance.sum().item(), rel=.05)
    assert [o.image.shape for o in found.images] == [(40, 40, 3)] * 2
    with pytest.raises(TypeError, match='RelationNet'): classifier('relation').explain_pair(*examples(2)[0][:2])
