"What each example does to the answers"
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fsc_fastai.deploy import FewShotClassifier, Preprocess
from fsc_fastai.methods import create_fsc_model
from fsc_fastai.methods.head import Head

from .toys import METHODS, classifier, examples, picture


@pytest.mark.parametrize('method, kwargs', [('proto', {}), ('proto', dict(distance='cosine')), ('can', {}), ('feat', {})])
def test_leaving_out_in_closed_form_is_refitting(method, kwargs):
    torch.manual_seed(0)
    model = create_fsc_model(method, 'conv4', img_size=32, **kwargs)
    head, f, f_query = model.head(statistics='support'), torch.rand(7, 64, 2, 2), torch.rand(3, 64, 2, 2)
    member = torch.eye(3)[[0, 1, 0, 2, 1, 0, 1]]
    found = head.without_each(f, member, f_query)
    assert found.shape == (7, 3, 3) and found.isnan().all((1, 2)).nonzero().tolist() == [[3]], 'the only one of its class'
    brute = Head.without_each(head, f, member, f_query)
    torch.testing.assert_close(found, brute, rtol=1e-4, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(head.without_each(f, member, f_query, torch.tensor([4, 1])), found[[4, 1]])
    if method != 'feat': # as refitted: none of the calls may have gone the slow way
        head.fit = None
        torch.testing.assert_close(head.without_each(f, member, f_query), found, equal_nan=True)


def log_odds(p): return np.log(p / (1 - p))


def fitted(known, images, labels):
    "Without a temperature, which other examples would change"
    known.temperature = 1.
    return known.fit(images, labels)


@pytest.mark.parametrize('method', METHODS)
def test_influence_is_what_an_answer_loses_without_an_example(method):
    images, labels = examples(2)
    known, query = fitted(classifier(method), images, labels), picture('red', 50)
    found = known.influence(query, 'red')
    assert found.label.tolist() == labels and found.influence.notna().all()
    def p(known): return log_odds(known.predict(query).probabilities['red'])
    for i in (0, len(labels) - 1):
        without = fitted(classifier(method), images[:i] + images[i + 1:], labels[:i] + labels[i + 1:])
        assert found.influence[i] == pytest.approx(p(known) - p(without), abs=1e-4)
    assert known.influence(query).equals(known.influence(query, known.predict(query).nearest))
    with pytest.raises(KeyError): known.influence(query, 'pink')
    with pytest.raises(TypeError, match='one image'): known.influence(images)


def test_an_only_example_has_no_influence_that_could_be_told():
    images, labels = examples(2)
    found = classifier().fit(images[1:], labels[1:]).influence(picture('red', 50))
    assert found.influence.isna().tolist() == [True] + [False] * (len(labels) - 2)


def of_colours(method):
    "A classifier by the mean colour of a picture"
    return FewShotClassifier(create_fsc_model(method, nn.AvgPool2d(32), img_size=32), Preprocess(32))


@pytest.mark.parametrize('method', ['proto', 'matching', 'can'])
def test_wrong_labels_are_found(method):
    images, labels = examples(5)
    wrong = {2: 'red', 11: 'blue', 19: 'green'} # of blue, grey and red
    named = [wrong.get(i, c) for i, c in enumerate(labels)]
    found = of_colours(method).fit(images, named).check_examples()
    assert set(found.index[:3]) == set(wrong), 'the worst three'
    assert [found.likeliest[i] for i in wrong] == [labels[i] for i in wrong] and (found.own[list(wrong)] < .5).all()
    assert (found.gain > 0).all() and found.own.is_monotonic_increasing


def test_gain_is_what_the_class_does_better_without_an_example():
    "By hand: the mean log-odds of its examples, each told by the others, without the example and with it"
    images = [Image.blend(picture('red', i), picture('blue', i), mix) for i, mix in enumerate((.7, .8, .4, .1, .3, .45))]
    labels, members = ['b', 'b', 'r', 'r', 'r', 'r'], [2, 3, 4, 5]
    def told(j, without=None):
        kept = [k for k in range(6) if k not in (j, without)]
        known = fitted(of_colours('proto'), [images[k] for k in kept], [labels[k] for k in kept])
        return log_odds(known.predict(images[j]).probabilities['r'])
    found, with_all = fitted(of_colours('proto'), images, labels).check_examples(), {j: told(j) for j in members}
    gain = {i: np.mean([told(j, i) for j in members if j != i]) - np.mean(list(with_all.values())) for i in members}
    assert set(found.index) == {i for i in members if gain[i] > 0}, 'a class of two cannot be checked'
    assert 0 < len(found) < 4 and found.index[0] == min(members, key=with_all.get)
    assert [found.gain[i] for i in found.index] == pytest.approx([gain[i] for i in found.index], abs=1e-4)
    assert log_odds(found.own).tolist() == pytest.approx([with_all[i] for i in found.index], abs=1e-4)


def test_before_there_are_examples():
    with pytest.raises(ValueError, match='no examples'): classifier().check_examples()
    one = classifier().add_class([picture('red', 0)], 'red')
    with pytest.raises(ValueError, match='two classes'): one.check_examples()
