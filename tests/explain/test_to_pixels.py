"From the scores to the pixels of query and support images"
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.explain import (
    LRP,
    GradientXInput,
    IntegratedGradients,
    Occlusion,
    attention_maps,
    explain_images,
    relevance_start,
)
from fsc_fastai.methods import FewShotModel, Pairs, class_means, create_fsc_model, pair_parts
from tests.methods.toys import METHODS, feature_encoder


def few_shot(method, arch='conv4', size=32, n_way=3, n_shot=1, n_query=1):
    "A model in evaluation mode, and the images of an episode"
    torch.manual_seed(0)
    model = create_fsc_model(method, arch, n_way=n_way, img_size=size).eval()
    y = torch.arange(n_way).repeat_interleave(n_shot)
    return model, (torch.randn(len(y), 3, size, size), y, torch.randn(n_way * n_query, 3, size, size))


@pytest.mark.parametrize('method', ['relation', 'can', 'proto', 'matching'])
def test_the_relevance_of_a_class_arrives_at_query_and_support(method):
    model, episode = few_shot(method)
    R = explain_images(model, *episode, LRP.published())
    arrived, start = R.query.sum((2, 3, 4)) + R.support.sum((2, 3, 4, 5)), relevance_start(R.scores)
    assert torch.corrcoef(torch.stack([arrived.flatten(), start.flatten()]))[0, 1] > .99
    assert (arrived / start).median() > .9


@pytest.mark.parametrize('method', ['relation', 'proto', 'matching'])
def test_support_images_speak_for_their_own_class(method):
    model, (support_x, support_y, query_x) = few_shot(method)
    R = explain_images(model, support_x, support_y, query_x, LRP.published()).support.abs().sum((3, 4, 5))
    others = support_y[None] != torch.arange(3)[:, None]
    assert R[:, others].max() == 0 and R[:, ~others].min() > 0


@pytest.mark.parametrize('method', ['can', 'gnn'])
@pytest.mark.parametrize('explainer', [LRP(), GradientXInput()], ids=['LRP', 'gradient'])
def test_chunks_change_nothing(method, explainer):
    model, (support_x, support_y, query_x) = few_shot(method)
    episode = support_x.double(), support_y, query_x.double()
    whole, parts = (explain_images(model.double(), *episode, explainer, chunk=chunk) for chunk in (64, 2))
    assert_close(parts, whole)


@pytest.mark.parametrize('explainer', [LRP(), LRP(start='contrast'), GradientXInput(), IntegratedGradients(2), Occlusion(16)],
                         ids=['LRP', 'contrast', 'gradient', 'integrated', 'occlusion'])
@pytest.mark.parametrize('method', ['relation', 'gnn', 'proto'])
def test_some_classes_on_request(method, explainer):
    "The same maps as among all, each query's in the order asked for"
    model, episode = few_shot(method)
    classes = torch.tensor([[2, 0], [1, 2], [0, 0]])
    whole, part = explain_images(model, *episode, explainer), explain_images(model, *episode, explainer, classes=classes)
    each = torch.arange(3)[:, None]
    assert_close(part.query, whole.query[each, classes], rtol=1e-4, atol=1e-6)
    assert_close(part.support, whole.support[each, classes], rtol=1e-4, atol=1e-6)


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


@pytest.mark.parametrize('method', METHODS)
def test_the_rules_by_default(method):
    "They have a name, as the published ones have, which guide as they did"
    model, episode = few_shot(method)
    found, named, published = (explain_images(model, *episode, e) for e in (None, LRP.faithful(), LRP.published()))
    assert_close(found, named)
    assert not torch.allclose(found.query, published.query, rtol=.1)
    assert LRPGuidedCallback().explainer.as_published and LRP.published().start == 'log-odds'


def test_without_biases_and_epsilon_the_rules_by_default_are_the_gradient_of_the_log_odds():
    "Times the input; the published ones are something else"
    model, episode = few_shot('relation')
    for m in model.modules():
        if getattr(m, 'bias', None) is not None: nn.init.zeros_(m.bias)
    wanted = explain_images(model, *episode, GradientXInput(start='contrast'))
    found = explain_images(model, *episode, LRP.faithful(1e-9))
    published = explain_images(model, *episode, LRP.published())
    for i in range(2):
        assert_close(found[i], wanted[i], rtol=1e-3, atol=1e-3 * wanted[i].abs().max().item())
        assert torch.corrcoef(torch.stack([published[i].flatten(), wanted[i].flatten()]))[0, 1] < .5


def test_any_callable_explains_the_classifier():
    model, episode = few_shot('relation')
    assert_close(explain_images(model, *episode, lambda model, f_p: LRP()(model, f_p)), explain_images(model, *episode, LRP()))
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


@pytest.mark.parametrize('method', ['relation', 'can', 'proto', 'matching'])
def test_relevance_of_a_difference_adds_up_to_it(method):
    model, episode = few_shot(method)
    R = explain_images(model, *episode, LRP.published(), against=1)
    arrived, wanted = R.query.sum((2, 3, 4)) + R.support.sum((2, 3, 4, 5)), R.scores - R.scores[:, 1:2]
    assert R.query[:, 1].abs().max() == R.support[:, 1].abs().max() == 0
    assert_close(arrived, wanted, rtol=.25, atol=.2 * wanted.abs().max().item())  # of what biases and stabilisers take


@pytest.mark.parametrize('method, explainer', [('proto', LRP()), ('can', LRP()), ('gnn', LRP()), ('matching', GradientXInput()),
                                               ('relation', GradientXInput())])
def test_relevance_is_linear_in_what_it_starts_from(method, explainer):
    "Against a third class two differences differ by what they are apart"
    model, episode = few_shot(method)
    against = [explain_images(model, *episode, explainer, against=i).query for i in range(3)]
    atol = 1e-5 * against[0].abs().max().item() + 1e-7
    assert_close(against[0][:, 2], against[1][:, 2] - against[1][:, 0], atol=atol, rtol=1e-3)
    assert_close(against[0][:, 2], -against[2][:, 0])


class Dot(FewShotModel):
    "The product of the query's features with the prototypes: linear in each"
    def process(self, f_support, support_y, f_query):
        return Pairs(class_means(f_support, support_y).flatten(1), f_query.flatten(1))

    def classify(self, f_p):
        support, query = pair_parts(f_p)
        return (support * query).sum(-1)


def test_a_difference_of_linear_scores_by_hand():
    "s_c = Σ_i q_i p_ci: the query's share of s_c − s_o is q_i (p_ci − p_oi) / 2, where the pixel is alike for both it is 0"
    model = Dot(feature_encoder(3, 4)).eval()
    support, y, query = torch.randn(6, 3, 4, 4), torch.tensor([0, 0, 1, 1, 2, 2]), torch.randn(2, 3, 4, 4)
    support[:, :, 0] = support[:1, :, :1].squeeze(2) # a row that all classes have in common
    p, q = class_means(support, y), query[:, None]
    for explainer in (LRP(eps=0.), GradientXInput()):
        R = explain_images(model, support, y, query, explainer, against=2)
        half = 2 if isinstance(explainer, LRP) else 1 # a gradient gives the whole product to each of the two
        assert_close(R.query, q * (p - p[2])[None] / half)
        alone = explain_images(model, support, y, query, explainer).query
        assert R.query[:, :, :, 0].abs().max() == 0 < alone[:, :, :, 0].abs().max()
    as_they_are = explain_images(model, support, y, query, LRP(eps=0., start='logits')).query
    assert_close(as_they_are - as_they_are[:, 2:], explain_images(model, support, y, query, LRP(eps=0.), against=2).query)


def test_a_difference_needs_an_explainer_and_a_class():
    model, episode = few_shot('proto')
    with pytest.raises(ValueError, match='against=3: the classes are 0 to 2'): explain_images(model, *episode, against=3)
    with pytest.raises(ValueError, match='against needs an Explainer'):
        explain_images(model, *episode, lambda model, f_p: f_p.features, against=0)
