"From the scores to the pixels of query and support images"
import pytest
import torch
from torch.testing import assert_close

from fsc_fastai.explain import LRP, GradientXInput, IntegratedGradients, attention_maps, explain_images, relevance_start
from fsc_fastai.methods import create_fsc_model

METHODS = ['relation', 'can', 'gnn', 'proto', 'matching']


def few_shot(method, arch='conv4', size=32, n_way=3, n_shot=1, n_query=1):
    "A model in evaluation mode, and the images of an episode"
    torch.manual_seed(0)
    model = create_fsc_model(method, arch, n_way=n_way, img_size=size).eval()
    y = torch.arange(n_way).repeat_interleave(n_shot)
    return model, (torch.randn(len(y), 3, size, size), y, torch.randn(n_way * n_query, 3, size, size))


@pytest.mark.parametrize('explainer', [LRP(), LRP(form='R'), GradientXInput(), IntegratedGradients(2)],
                         ids=['LRP', 'R-form', 'gradient', 'integrated'])
@pytest.mark.parametrize('method', METHODS)
def test_every_model(method, explainer):
    model, (support_x, support_y, query_x) = few_shot(method)
    R = explain_images(model, support_x, support_y, query_x, explainer)
    assert len(repr(R)) < 200
    assert R.query.shape == (3, 3, 3, 32, 32) and R.support.shape == (3, 3, 3, 3, 32, 32)
    for r in (R.query, R.support): assert r.isfinite().all() and r.abs().sum() > 0 and not r.requires_grad
    with torch.no_grad(): assert_close(R.scores, model(support_x, support_y, query_x))


@pytest.mark.parametrize('method', ['relation', 'can', 'proto', 'matching'])
def test_the_relevance_of_a_class_arrives_at_query_and_support(method):
    model, episode = few_shot(method)
    R = explain_images(model, *episode)
    arrived, start = R.query.sum((2, 3, 4)) + R.support.sum((2, 3, 4, 5)), relevance_start(R.scores)
    assert torch.corrcoef(torch.stack([arrived.flatten(), start.flatten()]))[0, 1] > .99
    assert (arrived / start).median() > .9


@pytest.mark.parametrize('method', ['relation', 'proto', 'matching'])
def test_support_images_speak_for_their_own_class(method):
    model, (support_x, support_y, query_x) = few_shot(method)
    R = explain_images(model, support_x, support_y, query_x).support.abs().sum((3, 4, 5))
    others = support_y[None] != torch.arange(3)[:, None]
    assert R[:, others].max() == 0 and R[:, ~others].min() > 0


@pytest.mark.parametrize('method', ['can', 'gnn'])
@pytest.mark.parametrize('explainer', [LRP(), GradientXInput()], ids=['LRP', 'gradient'])
def test_chunks_change_nothing(method, explainer):
    model, (support_x, support_y, query_x) = few_shot(method)
    episode = support_x.double(), support_y, query_x.double()
    whole, parts = (explain_images(model.double(), *episode, explainer, chunk=chunk) for chunk in (64, 2))
    assert_close(parts, whole)


def test_less_on_request():
    model, episode = few_shot('proto')
    whole, part = explain_images(model, *episode), explain_images(model, *episode, support=False, sum_channels=True)
    assert part.support is None
    assert_close(part.query, whole.query.sum(2, keepdim=True))


def test_gradients_are_those_of_the_whole_model():
    model, (support_x, support_y, query_x) = few_shot('proto')
    R = explain_images(model, support_x, support_y, query_x, GradientXInput())
    support_x.requires_grad_(), query_x.requires_grad_()
    scores = model(support_x, support_y, query_x)
    for q, c in ((0, 0), (1, 2)):
        gradients = torch.autograd.grad(scores[q, c], (support_x, query_x), retain_graph=True)
        R_c = relevance_start(scores)[q, c]
        assert_close(R.support[q, c], (R_c * support_x * gradients[0]).detach(), rtol=1e-3, atol=1e-5)
        assert_close(R.query[q, c], (R_c * query_x * gradients[1]).detach()[q], rtol=1e-3, atol=1e-5)


def test_any_callable_explains_the_classifier():
    model, episode = few_shot('relation')
    assert_close(explain_images(model, *episode, lambda model, f_p: LRP()(model, f_p)), explain_images(model, *episode))
    model, episode = few_shot('gnn')
    with pytest.raises(ValueError, match='all classes at once'): explain_images(model, *episode, lambda m, f_p: f_p.features)


def test_training_mode_is_refused():
    model, episode = few_shot('proto')
    with pytest.raises(ValueError, match=r'call model.eval\(\)'): explain_images(model.train(), *episode)


def test_a_transformer():
    model, episode = few_shot('proto', 'test_vit', 160)
    R = explain_images(model, *episode, support=False)
    assert R.query.shape == (3, 3, 3, 160, 160) and R.query.abs().sum() > 0


def test_attention_maps():
    model, (support_x, support_y, query_x) = few_shot('can')
    of_query, of_class = attention_maps(model, support_x, support_y, query_x)
    f_query = model.encode(query_x)
    f_p = model.process(model.encode(support_x), support_y, f_query)
    assert of_query.shape == of_class.shape == (3, 3, *f_query.shape[2:])
    assert_close(of_query[:, :, None] * f_query[:, None], f_p.query)
    with pytest.raises(TypeError, match='found ProtoNet'): attention_maps(few_shot('proto')[0], support_x, support_y, query_x)
