"A model whose scores are not finite gives no answer, but an error that says so; and so does one that is asked about nothing"
import numpy as np
import pytest
import torch
from fastai.callback.tracker import TerminateOnNaNCallback
from fastai.learner import load_learner

from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.explain import relevance_start
from fsc_fastai.learner.metrics import EpisodeAccuracy, episode_accuracy
from fsc_fastai.methods import create_fsc_model
from fsc_fastai.methods.base import class_means, episode_way
from tests.deploy.toys import classifier, examples, picture
from tests.learners import hue_learner, novel_image
from tests.methods.toys import METHODS


@pytest.fixture
def diverged(tmp_path):
    learn = hue_learner(tmp_path/'hues')
    learn.set_support(tmp_path/'hues'/'novel')
    learn.fit(2, lr=1e20)
    return learn


ASKED = {
    'evaluate': lambda learn, root: learn.evaluate(n_episodes=2, n_query=2),
    'confusion': lambda learn, root: learn.confusion('novel', n_episodes=2, n_query=2),
    'explain': lambda learn, root: learn.explain(),
    'predict': lambda learn, root: learn.predict(novel_image(root)),
    'save': lambda learn, root: learn.save('weights'),
    'export': lambda learn, root: learn.export('learner.pkl'),
    'classify': lambda learn, root: learn.classifier().predict_proba([novel_image(root)]),
    'explain an image': lambda learn, root: learn.classifier().explain(novel_image(root)),
    'calibrate': lambda learn, root: learn.classifier().calibrate(root/'base', n_way=2, n_shot=1, n_query=2, n_episodes=2),
    'save a classifier': lambda learn, root: learn.classifier().save(root.parent/'saved'),
    'to_onnx': lambda learn, root: learn.classifier().to_onnx(root.parent/'onnx', check=False),
}


def test_a_model_that_diverged_answers_nothing(diverged, tmp_path):
    for ask in ASKED.values():
        with pytest.raises(ValueError, match='not finite.*lower learning rate'): ask(diverged, tmp_path/'hues')
    assert not any((tmp_path/name).exists() for name in ('models', 'learner.pkl', 'saved', 'onnx'))
    loss, accuracy, _ = diverged.validate()
    assert np.isnan(loss) and np.isnan(accuracy)


def test_weights_that_are_finite_may_score_infinitely(tmp_path):
    known = classifier('relation').fit(*examples())
    with torch.no_grad():
        known.model.relation.fc1.bias.fill_(1e10)
        known.model.relation.fc2.weight.fill_(3e38)
    for ask in (lambda: known.predict(picture('red', 50)), lambda: known.save(tmp_path/'saved')):
        with pytest.raises(ValueError, match='scores of .* are not finite'): ask()


def test_a_training_that_diverges_ends_as_fastai_ends_it(tmp_path):
    "Explanations raise nothing in the middle of a step, before `TerminateOnNaNCallback` sees the loss"
    learn = hue_learner(tmp_path/'hues', cbs=[LRPGuidedCallback(), TerminateOnNaNCallback()])
    learn.fit(3, lr=1e20)
    assert learn.train_iter < 3*len(learn.dls.train)


def test_accuracy_of_scores_that_are_not_finite_is_none():
    y = torch.tensor([0, 1])
    assert episode_accuracy(torch.tensor([[2., 1.], [1., 2.]]), y) == 1
    for bad in (float('nan'), float('inf')): assert episode_accuracy(torch.tensor([[2., 1.], [1., bad]]), y).isnan()
    assert EpisodeAccuracy().name == 'accuracy'


def test_relevance_of_scores_that_are_not_finite():
    infinite = torch.tensor([[0., torch.inf, 1.], [0., -torch.inf, 1.]])
    torch.testing.assert_close(relevance_start(infinite), relevance_start(torch.tensor([[0., 1e6, 1.], [0., -1e6, 1.]])))
    assert relevance_start(torch.tensor([[0., torch.nan, 1.]])).isnan().all()


@pytest.mark.parametrize('labels', [[0, 2], [1, 2], [-1, 0], []])
def test_every_class_needs_support(labels):
    labels = torch.tensor(labels, dtype=torch.long)
    with pytest.raises(ValueError, match='0…n_way−1, each of them'): class_means(torch.randn(len(labels), 4), labels)
    with pytest.raises(ValueError, match='at least once'): episode_way(labels)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('method', METHODS)
def test_no_queries_have_no_scores(method, training):
    model = create_fsc_model(method, 'conv4', n_way=2, img_size=32).train(training)
    scores = model(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]), torch.randn(0, 3, 32, 32))
    assert scores.shape[:2] == (0, 2)


def test_a_loaded_learner_has_nothing_to_train_or_validate_on(tmp_path):
    root = tmp_path/'hues'
    learn = hue_learner(root)
    learn.fit(1)
    learn.export('learner.pkl')
    loaded = load_learner(tmp_path/'learner.pkl')
    for ask in (loaded.validate, lambda: loaded.fit(1), lambda: loaded.fine_tune(1), lambda: loaded.lr_find(), loaded.get_preds,
                loaded.explain, loaded.show_results, lambda: loaded.pretrain_encoder(1), loaded.dls.show_batch):
        with pytest.raises(ValueError, match='no images to .*learn.dls = '): ask()
    loaded.dls = learn.dls
    assert list(loaded.validate()) == pytest.approx(list(learn.validate()))


def test_an_explanation_needs_images_of_each_class(tmp_path):
    root = tmp_path/'hues'
    learn = hue_learner(root)
    image = novel_image(root)
    for query, support, message in ((image, {'a': image, 'b': []}, "no support image of class 'b'"),
                                    ([], {'a': image, 'b': image}, 'no image to explain'),
                                    (image, {'a': image}, 'two classes'), (image, None, 'both')):
        with pytest.raises(ValueError, match=message): learn.explain(query, support)
