"A classifier that adapts its model to its examples: saved, exported and explained as any other"
import pytest
import torch
from fastai.learner import load_learner

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


def has_graph(a): return a.on_images or a.has_graph or a.linear and a.treats_alone


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


@pytest.mark.parametrize('name', ['pa', 'finetune'])
def test_a_learner_adapts_to_its_support(learn, name, tmp_path):
    paths, labels = files(learn)
    expected = FewShotClassifier.from_learner(learn, adapt=made(name)).fit(paths, labels).scores(paths)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    torch.testing.assert_close(learn.set_support(paths, labels, adapt=made(name)).classifier().scores(paths), expected)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())
    learn.export(tmp_path/'learner.pkl')
    torch.testing.assert_close(load_learner(tmp_path/'learner.pkl').classifier().scores(paths), expected)
    with pytest.raises(ValueError, match='inductive'): learn.set_support(paths, labels, adapt='tim')
    torch.testing.assert_close(learn.classifier().scores(paths), expected)


@pytest.mark.parametrize('name', [n for n in INDUCTIVE if not has_graph(made(n))])
def test_what_has_no_graph_says_so_before_a_file_is_written(learn, name, tmp_path):
    classifier = FewShotClassifier.from_learner(learn, adapt=made(name)).fit(*files(learn))
    with pytest.raises(ValueError, match=f'{type(made(name)).__name__} learns.*SimpleShot'): classifier.to_onnx(tmp_path/'onnx')
    assert not (tmp_path/'onnx').exists()


@pytest.mark.parametrize('name', [n for n in INDUCTIVE if has_graph(made(n))])
def test_graphs_of_adapted_models_are_exported(learn, name, tmp_path):
    pytest.importorskip('onnxruntime')
    FewShotClassifier.from_learner(learn, adapt=made(name)).fit(*files(learn)).to_onnx(tmp_path)
