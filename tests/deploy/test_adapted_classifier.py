"A classifier that adapts its model to its examples: saved, exported and explained as any other"
import pytest
import torch

from fsc_fastai.adapt import get_adaptation, list_adaptations
from fsc_fastai.deploy import FewShotClassifier
from tests.adapt.test_adaptations import QUICK
from tests.learners import hue_learner


@pytest.fixture(scope='module')
def learn(tmp_path_factory): return hue_learner(tmp_path_factory.mktemp('classifier')/'hues', 'proto')


def files(learn, classes=3, n=2, start=0):
    dl = learn.dls.domains['novel']
    chosen = [[i for i, c in enumerate(dl.labels) if c == k][start:start + n] for k in sorted(set(dl.labels))[:classes]]
    paths = [dl.items[i][0] for row in chosen for i in row]
    return paths, [f'class{k}' for k, row in enumerate(chosen) for _ in row]


def made(name): return get_adaptation(name, **QUICK.get(name, {}))


INDUCTIVE = [n for n in list_adaptations() if not made(n).transductive and n != 'distribution_calibration']


@pytest.mark.parametrize('name', INDUCTIVE)
def test_answers_are_those_of_the_adapted_model_also_when_loaded(learn, name, tmp_path):
    classifier = FewShotClassifier.from_learner(learn, adapt=made(name)).fit(*files(learn))
    support, queries = files(learn)[0], files(learn, start=2)[0]
    preprocess = classifier.preprocess
    x, query, y = preprocess(support), preprocess(queries), torch.arange(3).repeat_interleave(2)
    model = learn.model.eval()
    with torch.no_grad(): expected = made(name)(model, x, y)(x, y, query)
    torch.testing.assert_close(classifier.scores(queries), expected, rtol=1e-4, atol=1e-4)
    loaded = FewShotClassifier.from_pretrained(classifier.save(tmp_path/'saved'))
    torch.testing.assert_close(loaded.scores(queries), classifier.scores(queries))


@pytest.mark.parametrize('name', ['finetune', 'pmf', 'pa'])
def test_classes_join_and_leave_as_if_they_had_been_there_or_not(learn, name):
    paths, labels = files(learn)
    grown = FewShotClassifier.from_learner(learn, adapt=made(name)).fit(paths[:4], labels[:4])
    grown.add_class(paths[4:], labels[4])
    whole = FewShotClassifier.from_learner(learn, adapt=made(name)).fit(paths, labels)
    torch.testing.assert_close(grown.scores(paths), whole.scores(paths))
    small = FewShotClassifier.from_learner(learn, adapt=made(name)).fit(paths[:4], labels[:4])
    torch.testing.assert_close(grown.remove_class(labels[4]).scores(paths), small.scores(paths))


def test_one_image_is_explained(learn):
    paths, labels = files(learn)
    for name in ('pa', 'finetune', 'tsa'):
        explained = FewShotClassifier.from_learner(learn, adapt=made(name)).fit(paths, labels).explain(paths[0])
        assert all(abs(R).sum() > 0 for R in explained.relevance.values())


def test_queries_that_are_answered_together_are_no_classifier(learn):
    with pytest.raises(ValueError, match='inductive'): FewShotClassifier.from_learner(learn, adapt='tim')


@pytest.mark.parametrize('name', ['simple_shot', 'pmf', 'tsa', 'finetune'])
def test_graphs_of_adapted_models_are_exported(learn, name, tmp_path):
    pytest.importorskip('onnxruntime')
    FewShotClassifier.from_learner(learn, adapt=made(name)).fit(*files(learn)).to_onnx(tmp_path)
