"Every adaptation makes of a model a model: the original stays, seeds repeat, what comes out explains and refuses clearly"
import copy

import pytest
import torch

from fsc_fastai.adapt import get_adaptation, list_adaptations
from fsc_fastai.adapt.base import as_adaptation
from fsc_fastai.explain.to_pixels import explain_images
from fsc_fastai.methods import create_fsc_model
from tests.gpu import GPU

QUICK = {'finetune': dict(steps=3), 'episode_tune': dict(steps=2, n_pseudo=12), 'tsa': dict(steps=2),
         'pmf': dict(steps=2, search_steps=1, lrs=(1e-3,)), 'pa': dict(steps=3), 'tim': dict(steps=3), 'tim_adm': dict(steps=3),
         'lora': dict(steps=2, search_steps=1, lrs=(1e-3,), rank=2, targets=('conv', '0.0', '1.0')),
         'label_propagation': dict(k=3), 'tuned_prototypes': dict(steps=3), 'transductive_tuning': dict(steps=3)}
BASE = torch.rand(4, 20, 64, generator=torch.Generator().manual_seed(0))
QUICK['distribution_calibration'] = dict(base_means=BASE.mean(1), base_covariances=torch.stack([b.T.cov() for b in BASE]),
                                         n_draws=4)
NEEDS_QUERIES = {'label_propagation': 'smaller k', 'laplacian_shot': 'smaller knn', 'pt_map': 'BDCSPN'}
every_adaptation = pytest.mark.parametrize('name', list_adaptations())


def made(name, **settings): return get_adaptation(name, **QUICK.get(name, {}) | settings)


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return create_fsc_model('proto', 'conv4', n_way=3, img_size=32).eval()


def episode(shots=(2, 2, 2), n_query=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    y, query_y = (torch.arange(len(shots)).repeat_interleave(torch.as_tensor(n)) for n in (shots, [n_query] * len(shots)))
    draw = lambda y: torch.randn(len(y), 3, 32, 32, generator=g) + y[:, None, None, None]
    return draw(y), y, draw(query_y), query_y


@every_adaptation
def test_the_original_stays_as_it_is_and_a_seed_repeats_the_answer(name, model):
    x, y, query, _ = episode()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    with torch.no_grad():
        first, second = (made(name)(model, x, y, query)(x, y, query) for _ in range(2))
    assert first.shape == (6, 3) and first.isfinite().all() and torch.equal(first, second)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and torch.equal(state, torch.get_rng_state())
    assert not model.training and all(p.requires_grad for p in model.parameters())


DRAWS = {'distribution_calibration', 'pmf', 'episode_tune'}
"Draw random numbers where the images are, and a GPU draws others"


@pytest.mark.gpu
@every_adaptation
def test_answers_of_a_gpu_are_those_of_the_cpu(name, model, full_single_precision):
    def answer(place, **settings):
        x, y, query, _ = (o.to(place) for o in episode())
        with torch.no_grad(): scores = made(name, **settings)(copy.deepcopy(model).to(place), x, y, query)(x, y, query)
        assert scores.device.type == torch.device(place).type
        return scores.cpu()
    ours, expected = answer(GPU), answer('cpu')
    if name in DRAWS: assert ours.isfinite().all() and torch.equal(ours, answer(GPU)) and ours.shape == expected.shape
    else: torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


@every_adaptation
def test_unequal_shots_in_any_order(name, model):
    x, y, query, _ = episode((1, 3, 2))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    scores = made(name)(model, x[order], y[order], query)(x[order], y[order], query)
    assert scores.shape == (6, 3) and scores.isfinite().all()


@every_adaptation
def test_one_class_is_refused(name, model):
    x, y, query, _ = episode((3,))
    with pytest.raises(ValueError, match='one class'): made(name)(model, x, y, query)(x, y, query)


@every_adaptation
@pytest.mark.parametrize('case', ['one shot', 'constant images', 'two queries'])
def test_odd_episodes_are_answered_or_say_what_they_need(name, case, model):
    x, y, query, _ = episode((1, 1, 1), n_query=1)
    if case == 'constant images': x, query = torch.full_like(x, .5), torch.full_like(query, .5)
    if case == 'two queries': query = query[:2]
    adaptation = made(name)
    if case == 'two queries' and name in NEEDS_QUERIES:
        with pytest.raises(ValueError, match=NEEDS_QUERIES[name]): adaptation(model, x, y, query)(x, y, query)
        return
    scores = adaptation(model, x, y, query)(x, y, query)
    assert scores.shape == (len(query), len(y)) and scores.isfinite().all()


@every_adaptation
def test_the_order_of_queries_by_class_tells_nothing(name, model):
    x, y, query, _ = episode()
    order = torch.randperm(len(query), generator=torch.Generator().manual_seed(1))
    turned = made(name)(model, x, y, query[order])(x, y, query[order])
    torch.testing.assert_close(turned, made(name)(model, x, y, query)(x, y, query)[order], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', ['finetune', 'episode_tune', 'pmf', 'tsa', 'simple_shot', 'support_centred', 'pa', 'ridge',
                                  'logistic', 'lda', 'tip_adapter', 'self_training', 'bdcspn', 'tim'])
def test_pixels_are_explained(name, model):
    x, y, query, _ = episode()
    R = explain_images(made(name)(model, x, y, query), x, y, query, support=False)
    assert R.query.shape == (6, 3, 3, 32, 32) and R.query.isfinite().all() and R.query.abs().amax((-3, -2, -1)).min() > 0


def test_names_and_settings_that_do_not_exist_are_named():
    assert as_adaptation('pa:steps=10,lr=0.5').lr == 0.5 and as_adaptation(None) is None
    with pytest.raises(ValueError, match='stepss'): as_adaptation('pa:stepss=3')
    with pytest.raises(ValueError, match='setting=number'): as_adaptation('pa:steps')


def test_pmf_leaves_one_shot_untuned_and_tsa_wants_convolutions(model):
    x, y, query, _ = episode((1, 1, 1))
    adapted = made('pmf')(model, x, y)
    assert all(torch.equal(a, b) for a, b in zip(adapted.encoder.parameters(), model.encoder.parameters()))
    vit = create_fsc_model('proto', 'vit_tiny_patch16_224', n_way=3, img_size=32, encoder_kwargs=dict(depth=1)).eval()
    with pytest.raises(ValueError, match='3×3'): made('tsa')(vit, x, y)
    assert made('pmf')(vit, x, y)(x, y, query).isfinite().all()


def test_published_queries_share_batch_statistics(model):
    x, y, query, _ = episode()
    published = get_adaptation('episode_tune', steps=1, n_pseudo=6, batch_statistics=True)
    adapted = published(model, x, y, query)
    assert published.transductive and not torch.allclose(adapted(x, y, query)[:1], adapted(x, y, query[:1]))
    quiet = get_adaptation('episode_tune', steps=1, n_pseudo=6)(model, x, y)
    torch.testing.assert_close(quiet(x, y, query)[:1], quiet(x, y, query[:1]))
