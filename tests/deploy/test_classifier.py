import io

import numpy as np
import pytest
import torch
from PIL import Image

from fsc_fastai.deploy import FewShotClassifier, NotFittedError, Prediction

from .toys import COLOURS, METHODS, classifier, examples, folder_of, picture

QUERIES = examples(2, first=50)


def test_fit_and_predict_as_scikit_learn():
    known = classifier().fit(*examples())
    assert known.classes_.tolist() == sorted(COLOURS)
    p = known.predict_proba(QUERIES[0])
    assert p.shape == (10, 5) and np.allclose(p.sum(1), 1)
    assert known.score(*QUERIES) == 1
    answers = known.predict_batch(QUERIES[0])
    assert answers[0] == Prediction('blue', p[0].max(), dict(zip(known.classes_.tolist(), p[0].tolist())))
    assert [o.label for o in answers] == QUERIES[1] and known.predict(QUERIES[0][0]).label == 'blue'


@pytest.mark.parametrize('method', METHODS)
def test_an_answer_is_the_same_alone_in_a_batch_and_after_others(method):
    known = classifier(method).fit(*examples())
    images = [*QUERIES[0], *(picture('red', i) for i in range(60, 125))]
    together = known.predict_proba(images)
    alone = np.concatenate([known.predict_proba([o]) for o in images[:10]])
    assert np.allclose(alone, together[:10], rtol=0, atol=1e-5)
    assert np.allclose(known.predict_proba(images[::-1])[::-1], together, rtol=0, atol=1e-5)
    assert np.array_equal(known.predict_proba(images), together)


def test_images_go_through_the_encoder_as_many_at_once_as_memory_is_meant_for(monkeypatch):
    known, images, seen = classifier().fit(*examples()), QUERIES[0], []
    together = known.predict_proba(images)
    known.model.encoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    known.predict_proba(images)
    assert seen == [10]
    monkeypatch.setattr('fsc_fastai.deploy.fitting.AT_ONCE', 4 * 64 * 32 * 32 * 4)  # of conv4's first maps
    known = FewShotClassifier(known.model, known.preprocess).fit(*examples())  # with a copy of the model and of its hook
    seen.clear()
    assert np.allclose(known.predict_proba(images), together, rtol=0, atol=1e-6)
    assert seen == [4, 4, 2]


def test_images_of_every_kind_mean_the_same(tmp_path):
    known, im = classifier().fit(*examples()), picture('green', 70)
    im.save(tmp_path/'a.png')
    kinds = [tmp_path/'a.png', str(tmp_path/'a.png'), (tmp_path/'a.png').read_bytes(), np.array(im),
             torch.from_numpy(np.array(im)).permute(2, 0, 1), im.convert('RGBA')]
    assert all(known.predict(o) == known.predict(im) for o in kinds)
    stack = np.stack([np.array(im), np.array(picture('red', 70))])
    assert [o.label for o in known.predict_batch(stack)] == ['green', 'red']
    assert [o.label for o in known.predict_batch(f for f in [im])] == ['green']
    assert known.predict_proba([]).shape == (0, 5)


def test_fit_on_a_folder_is_fit_on_its_files(tmp_path):
    folder = folder_of(tmp_path/'support')
    by_folder, by_hand = classifier().fit(folder), classifier().fit(*examples())
    assert np.allclose(by_folder.predict_proba(QUERIES[0]), by_hand.predict_proba(QUERIES[0]), atol=1e-6)
    assert by_folder.shots_ == dict.fromkeys(sorted(COLOURS), 3)


@pytest.mark.parametrize('method', ['relation', 'proto', 'matching'])
def test_adding_and_removing_classes_is_as_fitting_anew(method):
    images, labels = examples()
    at_once = classifier(method).fit(images, labels)
    in_steps = classifier(method).fit(images[:9], labels[:9])
    in_steps.add_class(images[9:12], 'red').add_class(images[12:14], 'yellow').add_class(images[14], 'yellow')
    assert np.allclose(in_steps.predict_proba(QUERIES[0]), at_once.predict_proba(QUERIES[0]), atol=1e-5)
    three = [i for i, c in enumerate(labels) if c not in ('grey', 'yellow')]
    fewer = classifier(method).fit([images[i] for i in three], [labels[i] for i in three])
    at_once.remove_class('grey').remove_class('yellow')
    assert at_once.classes_.tolist() == ['blue', 'green', 'red']
    assert np.allclose(at_once.predict_proba(QUERIES[0]), fewer.predict_proba(QUERIES[0]), atol=1e-5)


def test_classes_one_by_one_from_none():
    known = classifier('gnn')
    for c in list(COLOURS)[:4]:
        known.add_class([picture(c, 0)], c)
        with pytest.raises(ValueError, match='tells 5 classes apart'): known.predict(picture('red', 9))
    assert known.add_class([picture('yellow', 0)], 'yellow').fitted and known.predict(picture('red', 9)).label in COLOURS
    before = known.predict_proba(QUERIES[0])
    with pytest.raises(ValueError, match='tells 5 classes apart, found 6'): known.add_class([picture('red', 1)], 'another')
    with pytest.raises(ValueError, match='found 4'): known.remove_class('red')
    assert np.array_equal(known.predict_proba(QUERIES[0]), before)


def test_whole_numbers_are_labels_too():
    images, names = examples()
    numbers = np.array([sorted(COLOURS).index(c) * 10 for c in names])
    known = classifier().fit(images, torch.from_numpy(numbers))
    assert known.classes_.tolist() == [0, 10, 20, 30, 40] and known.predict(picture('grey', 80)).label == 20
    with pytest.raises(TypeError, match='all text, or all whole numbers'): known.add_class(picture('red', 1), 'red')


def test_reject_answers_none_of_these():
    known = classifier().fit(*examples(colours=['blue', 'red']))
    known.temperature = 1000.
    known.reject = .9
    answer = known.predict(picture('blue', 90))
    assert answer.label is None and answer.nearest == 'blue' and answer.confidence < .9
    known.reject = None
    assert known.predict(picture('blue', 90)).label == 'blue'


@pytest.mark.parametrize('act, error, message', [
    (lambda c: c.predict(picture('red', 0)), NotFittedError, 'call fit'),
    (lambda c: c.fit([picture('red', 0)], ['red']), ValueError, 'two classes at least are needed, found 1'),
    (lambda c: c.fit(examples()[0], ['red']), ValueError, '15 images, but 1 labels'),
    (lambda c: c.fit([], []), ValueError, 'no images'),
    (lambda c: c.fit(examples()[0]), TypeError, 'labels are needed'),
    (lambda c: c.fit(examples()[0], [1.5] * 15), TypeError, 'labels are text or whole numbers, not 1.5'),
    (lambda c: c.fit('no/such/folder'), FileNotFoundError, 'no/such/folder'),
    (lambda c: c.fit(['missing.jpg', 'other.jpg'], ['a', 'b']), FileNotFoundError, 'missing.jpg'),
    (lambda c: c.fit(*examples()).predict(b'no image'), OSError, 'cannot be read as an image'),
    (lambda c: c.fit(*examples()).predict(3), TypeError, 'not int'),
    (lambda c: c.fit(*examples()).predict_batch(3), TypeError, 'not int'),
    (lambda c: c.fit(*examples()).remove_class('pink'), ValueError, "no class 'pink': there are blue"),
])
def test_errors_name_what_is_wrong(act, error, message):
    with pytest.raises(error, match=message): act(classifier())


def test_a_failed_fit_leaves_the_classifier_as_it_was():
    known = classifier('relation').fit(*examples())
    before = known.predict_proba(QUERIES[0])
    with pytest.raises(OSError): known.fit([picture('red', 0), b'broken'], ['a', 'b'])
    with pytest.raises(ValueError): known.fit([picture('red', 0)], ['a'])
    assert known.classes_.tolist() == sorted(COLOURS) and np.array_equal(known.predict_proba(QUERIES[0]), before)


def test_training_goes_on_without_the_classifier():
    "The classifier has the weights of the moment when it was made"
    known = classifier().fit(*examples())
    copy = FewShotClassifier(known.model, known.preprocess).fit(*examples())
    before = copy.predict_proba(QUERIES[0])
    with torch.no_grad(): next(known.model.parameters()).zero_()
    assert np.array_equal(copy.predict_proba(QUERIES[0]), before)


def test_odd_images_do_not_stop_it():
    known = classifier().fit(*examples())
    tall, grey16 = Image.new('RGB', (1, 500), 'red'), Image.fromarray(np.full((20, 30), 40000, np.uint16))
    buffer = io.BytesIO()
    picture('red', 0).convert('CMYK').save(buffer, 'JPEG')
    assert known.predict_proba([tall, grey16, buffer.getvalue()]).shape == (3, 5)
