import numpy as np
import pytest
import torch

from fsc_fastai.explain.to_pixels import explain_images

from .toys import COLOURS, METHODS, classifier, examples, picture


@pytest.mark.parametrize('method', METHODS)
def test_every_class_has_a_heatmap_of_the_image(method):
    known = classifier(method).fit(*examples())
    before = {k: v.clone() for k, v in known.model.state_dict().items()}
    found = known.explain(picture('red', 30))
    assert len(repr(found)) < 500 and "ndarray(32, 32)" in repr(found)
    assert found.relevance.keys() == set(COLOURS) and found.prediction.label == known.predict(picture('red', 30)).label
    assert all(R.shape == (32, 32) and np.isfinite(R).all() for R in found.relevance.values())
    assert not np.allclose(found.relevance['red'], found.relevance['blue'])
    assert found.heatmap().size == found.heatmap('blue').size == found.image.size == (32, 32)
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
