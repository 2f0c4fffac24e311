"Explaining a few-shot model leaves it as it was, however the explanation ends"
import pytest
import torch

from fsc_fastai.explain import explain_images
from fsc_fastai.methods import create_fsc_model

from ..methods.toys import METHODS, feature_episode, feature_model
from .nets import OF_FEATURES, assert_unchanged, state

EXPLAINERS = pytest.mark.parametrize('explainer', OF_FEATURES.values(), ids=OF_FEATURES)


class HalfWay(RuntimeError):
    "Raised in the middle"


def in_use(model, *args):
    "A model in the middle of its life: gradients are there, some weights are frozen"
    next(model.parameters(), torch.zeros(1)).requires_grad_(False)
    scores = model(*args)
    scores = scores if isinstance(scores, torch.Tensor) else scores[0]
    if scores.requires_grad: scores.sum().backward()
    return model


def fail(*args, **kwargs): raise HalfWay


@EXPLAINERS
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('method', METHODS)
def test_of_the_processed_features(method, explainer, training):
    model = feature_model(method, n_classes=3 if method == 'can' else 0).train(training)
    support, y, query, _ = feature_episode()
    in_use(model, support, y, query)
    f_p = model.process(support, y, query)
    before = state(model)
    explainer(model, f_p)
    assert_unchanged(before, state(model))
    with torch.no_grad(): explainer(model, f_p)
    assert_unchanged(before, state(model))


@EXPLAINERS
@pytest.mark.parametrize('method', ['relation', 'gnn'])
def test_an_error_in_the_classifier(method, explainer):
    model = feature_model(method).train()
    support, y, query, _ = feature_episode()
    in_use(model, support, y, query)
    f_p = model.process(support, y, query)
    layer = model.relation.fc1 if method == 'relation' else model.gnn.last.fc
    handle = layer.register_forward_hook(fail)
    before = state(model)
    with pytest.raises(HalfWay): explainer(model, f_p)
    assert_unchanged(before, state(model))
    assert torch.is_grad_enabled()
    handle.remove()
    explainer(model, f_p)


@EXPLAINERS
@pytest.mark.parametrize('fails', [False, True])
@pytest.mark.parametrize('method', METHODS)
def test_of_the_pixels(method, explainer, fails):
    torch.manual_seed(0)
    model = create_fsc_model(method, 'conv4', n_way=2, img_size=16)
    images = torch.randn(2, 3, 16, 16), torch.arange(2), torch.randn(2, 3, 16, 16)
    in_use(model.train(), *images).eval()
    calls = []
    def third_time(*args):
        calls.append(1)
        if fails and len(calls) == 3: raise HalfWay  # classified already, on the way to the pixels
    model.encoder.body.stages[2].register_forward_hook(third_time)
    before = state(model)
    if fails:
        with pytest.raises(HalfWay): explain_images(model, *images, explainer)
    else: explain_images(model, *images, explainer)
    assert_unchanged(before, state(model))
    assert len(calls) > 2
