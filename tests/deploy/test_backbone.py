"`FewShotClassifier.from_backbone`: images as the weights know them, nothing is trained, and a classifier as any other"
import warnings

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from fsc_fastai.adapt import LDAHead, LogisticHead, RidgeHead
from fsc_fastai.adapt.features import unit
from fsc_fastai.deploy import FewShotClassifier, Preprocess
from fsc_fastai.deploy.backbone import DEFAULT_HEAD, HEADS
from fsc_fastai.deploy.set_support import learner_from_bundle
from fsc_fastai.explain import LRP
from fsc_fastai.explain.rules import divide

from ..encode.stub import ARCH, SIZE
from .toys import COLOURS, examples, folder_of, picture

QUERIES = examples(2, first=50)


@pytest.fixture(scope='module')
def weights():
    torch.manual_seed(2)
    return timm.create_model(ARCH).state_dict()


@pytest.fixture
def made(weights):
    "A classifier on the stub, without examples"
    return lambda head=DEFAULT_HEAD, **kwargs: FewShotClassifier.from_backbone(ARCH, weights, head, **kwargs)


def wide(seed=3, size=(50, 70)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(size[::-1], 2)


def test_features_are_those_of_timm_with_timms_own_transform(made, weights):
    "Size, cut, interpolation and statistics: any other than the backbone's own gives other features"
    body = timm.create_model(ARCH, num_classes=0).eval()
    body.load_state_dict(weights, strict=False)
    tfm = create_transform(**resolve_data_config(model=body), is_training=False)
    known = made()
    for im in (wide(), wide(4, (70, 50)), wide(5, (40, 40))):
        with torch.no_grad(): wanted = body(tfm(im)[None])
        def differs(preprocess, im=im, wanted=wanted):
            x = preprocess([im])
            with torch.no_grad(): return float((known.model.encode(x).flatten(1) - wanted).norm() / wanted.norm())
        assert differs(known.preprocess) < .01
        assert known.encode(known.preprocess.pixels(im)[None]).flatten(1) == pytest.approx(wanted, rel=.05, abs=.01)
        assert differs(Preprocess(SIZE)) > .1, 'ImageNet\'s statistics'
    assert known.preprocess.interpolation == 'bicubic' and known.preprocess.resize == 40


@pytest.mark.parametrize('head', HEADS)
def test_a_folder_of_examples_is_enough(made, head, tmp_path):
    known = made(head).fit(folder_of(tmp_path/'examples', 2))
    assert known.score(*QUERIES) >= .8
    assert known.predict(picture('red', 90)).label == 'red'
    loaded = FewShotClassifier.from_pretrained(known.save(tmp_path/'saved'))
    assert loaded.preprocess == known.preprocess
    assert np.allclose(loaded.predict_proba(QUERIES[0]), known.predict_proba(QUERIES[0]), rtol=0, atol=1e-6)
    grown = made(head).fit(*examples(2, list(COLOURS)[:4])).add_class([picture('yellow', i) for i in range(2)], 'yellow')
    assert np.allclose(grown.scores(QUERIES[0]), made(head).fit(*examples(2)).scores(QUERIES[0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('head', ['ridge', 'lda', 'logistic'])
def test_scores_are_those_of_the_head_on_unit_features(made, head):
    known, (images, labels) = made(head).fit(*examples()), examples()
    with torch.no_grad():
        f, q = (unit(known.model.encode(known.preprocess(o)).flatten(1)) for o in (images, QUERIES[0]))
    y = torch.tensor([known.classes_.tolist().index(o) for o in labels])
    wanted = {'ridge': RidgeHead(), 'lda': LDAHead(), 'logistic': LogisticHead()}[head].fit(f, y)(q)
    torch.testing.assert_close(known.scores(QUERIES[0]), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('head', HEADS)
def test_relevance_goes_through_the_head_to_the_pixels(made, head):
    known = made(head).fit(*examples())
    explained = known.explain(picture('red', 60))
    assert all(R.shape == (SIZE, SIZE) and np.abs(R).sum() > 0 for R in explained.relevance.values())
    differ = explained.relevance['red'] - explained.relevance['blue']
    assert np.abs(differ).max() > 1e-3 * np.abs(explained.relevance['red']).max()


@pytest.mark.parametrize('head', ['ridge', 'lda', 'logistic'])
def test_relevance_of_a_linear_head_is_input_times_weight(made, head):
    known = made(head).fit(*examples())
    model = known.head.explained()
    with torch.no_grad():
        f_p = model.process(known.head.support, known.head.member, known.model.encode(known.preprocess(QUERIES[0])))
        W, scores = known.head.support[:, :-1], known.head.scores(known.model.encode(known.preprocess(QUERIES[0])))
    for c in range(len(W)):
        start = torch.nn.functional.one_hot(torch.tensor(c), len(W)) * scores
        R = LRP(form='R').relevance(model.classify, f_p, start)
        torch.testing.assert_close(R, divide(start[:, c], f_p @ W[c], 1e-3)[:, None] * f_p * W[c], rtol=1e-3, atol=1e-4)
        far = (f_p @ W[c]).abs() > .1  # of the stabiliser
        torch.testing.assert_close(R.sum(1)[far], scores[far, c], rtol=.01, atol=1e-4)


@pytest.mark.parametrize('head', ['ridge', *(pytest.param(o, marks=pytest.mark.slow) for o in HEADS if o != 'ridge')])
def test_the_graphs_of_an_onnx_runtime_answer_as_torch(made, head, tmp_path):
    pytest.importorskip('onnxruntime')
    made(head).fit(*examples()).to_onnx(tmp_path)  # which compares


def test_a_saved_one_is_evaluated_with_its_own_images(made, tmp_path):
    made().fit(*examples()).save(tmp_path/'saved')
    learn = learner_from_bundle(tmp_path/'saved', 'cpu')
    assert Preprocess.from_dls(learn.dls) == made().preprocess
    table = learn.evaluate({'colours': folder_of(tmp_path/'colours', 21)}, n_episodes=4)
    assert table.accuracy[0] > .8


def test_pool_and_size_are_kept(tmp_path):
    with pytest.warns(UserWarning, match='random'): state = FewShotClassifier.from_backbone('conv4').model.encoder.state_dict()
    assert state
    vit = timm.create_model('test_vit').state_dict()
    known = FewShotClassifier.from_backbone('test_vit', vit, 'cosine', pool='both', size=64).fit(*examples())
    loaded = FewShotClassifier.from_pretrained(known.save(tmp_path))
    assert loaded.model.encoder.pool == 'both' and loaded.preprocess.size == 64
    assert np.allclose(loaded.predict_proba(QUERIES[0]), known.predict_proba(QUERIES[0]), rtol=0, atol=1e-6)
    auto = FewShotClassifier.from_backbone('test_vit', vit)
    assert auto.preprocess.size == 160 and auto.preprocess.mean == (.5, .5, .5) and auto.model.encoder.pool == 'auto'


@pytest.mark.parametrize('head, why', [
    *((head, f'head={head!r}.*nobody has trained.*ridge.*fsc_learner') for head in ('relation', 'gnn', 'can', 'feat', 'linear')),
    ('tim', 'answers queries together'), ('pmf', 'pass it as adapt='), ('rigde', 'did you mean ridge')])
def test_what_is_no_head_is_an_error(made, head, why):
    with pytest.raises(ValueError, match=why): made(head)


def test_heads_beside_the_named_ones(made):
    for head in (LDAHead(shrinkage=.5, treatment='l2'), 'simple_shot', 'lda:shrinkage=0.5', 'matching'):
        assert made(head).fit(*examples()).score(*QUERIES) >= .8
    assert made(adapt='finetune:steps=1').fit(*examples()).predict(picture('red', 90)).label


def test_no_pretrained_weights_is_a_warning_that_says_random():
    with pytest.warns(UserWarning, match="no pretrained weights for 'conv4': its features are random.*weights=FILE"):
        known = FewShotClassifier.from_backbone('conv4')
    assert known.preprocess.size == 84
    with pytest.raises(ValueError, match='did you mean resnet18'): FewShotClassifier.from_backbone('resnet118')
    with pytest.raises(ValueError, match='nothing says what images Conv2d'):
        FewShotClassifier.from_backbone(torch.nn.Conv2d(3, 4, 3))


@pytest.mark.parametrize('head', HEADS)
def test_few_equal_grey_or_tiny_images(made, head):
    "One image of a class beside several of another; a class of one picture over and over; grey ones, of one pixel"
    one = [picture('red', 1), *(picture('blue', i) for i in range(3))], ['red', *['blue'] * 3]
    assert made(head).fit(*one).predict(picture('red', 60)).label == 'red'
    assert made(head).fit([picture('red', 1), picture('blue', 1)], ['red', 'blue']).predict(picture('blue', 60)).label == 'blue'
    same = [picture(c, 1) for c in ('red', 'blue') for _ in range(5)], [c for c in ('red', 'blue') for _ in range(5)]
    known = made(head).fit(*same)
    assert known.predict(picture('blue', 60)).label == 'blue' and np.isfinite(known.predict_proba(QUERIES[0])).all()
    grey = [Image.new('L', (1, 1), v) for v in (0, 20, 235, 255)]
    assert made(head).fit(grey, ['dark', 'dark', 'light', 'light']).predict(Image.new('L', (3, 2), 250)).label == 'light'


@pytest.mark.parametrize('head', HEADS)
def test_hundreds_of_classes(made, head):
    rng, labels = np.random.default_rng(0), [f'{i // 2:03}' for i in range(600)]
    images = [Image.fromarray(np.full((2, 2, 3), c, np.uint8)) for c in rng.integers(0, 256, (300, 3))]
    known = made(head).fit([im for im in images for _ in range(2)], labels)
    p = known.predict_proba(images[:5])
    assert p.shape == (5, 300) and np.isfinite(p).all()
    assert known.predict(images[0]).nearest in known.classes_


def test_the_default_warns_of_nothing(made):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        made().fit(*examples())
