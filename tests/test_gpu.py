"What a GPU computes is what the CPU computes: relevance, training steps, evaluation, explanations, deployment"
import pytest
import torch
from fastai.learner import load_learner
from torch.testing import assert_close

from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.callback.lft import FTCallback
from fsc_fastai.deploy import FewShotClassifier
from fsc_fastai.encode import create_encoder
from fsc_fastai.explain import LRP, GradCAM, explain_images, relevance_start
from fsc_fastai.learner import faithfulness  # noqa: F401  adds it to the learner
from tests.callback.episodes import Episodes, build_model, gammas, learner, lft, start
from tests.deploy.toys import classifier, examples
from tests.gpu import GPU, ON_CUDA
from tests.learners import hue_learner, weights
from tests.methods.toys import METHODS, feature_episode, feature_model

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures('full_single_precision')]

PLACES = 'cpu', GPU


@pytest.fixture
def double_by_default():
    "What is made without a type, as γ and β are, has double precision"
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def on_cpu(values): return {k: v.cpu() for k, v in values.items()}


@pytest.mark.parametrize('engine', [False, True], ids=['written out', 'engine'])
@pytest.mark.parametrize('method', METHODS)
def test_relevance(method, engine):
    def relevance(place):
        model, episode = feature_model(method).double().to(place), [o.to(place) for o in feature_episode()]
        f_p = model.process(episode[0].double(), episode[1], episode[2].double())
        return LRP(engine=engine)(model, f_p).cpu()
    a, b = map(relevance, PLACES)
    assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert a.abs().sum() > 0


@pytest.mark.parametrize('arch', ['conv4', 'resnet10', 'resnet12', 'resnet18'])
def test_relevance_of_pixels(arch):
    def relevance(place):
        torch.manual_seed(0)
        encoder = create_encoder(arch, img_size=32).double().eval()
        x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
        return LRP().relevance(encoder.to(place), x.to(place), encoder(x.to(place)).detach()).cpu()
    a, b = map(relevance, PLACES)
    assert_close(a, b, rtol=1e-7, atol=1e-9)
    assert a.abs().sum() > 0


@pytest.mark.parametrize('method', METHODS)
def test_explanations(method):
    def explained(place):
        torch.manual_seed(0)
        model = build_model(method=method).to(place)
        episode = Episodes(device=place).episode(0)
        found = explain_images(model.eval(), episode.support_x, episode.support_y, episode.query_x)
        return found.query.cpu()
    a, b = map(explained, PLACES)
    assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert a.abs().sum() > 0


def slow_lft(place, **kwargs):
    "Gradients by γ, β are large here, and long steps along them would make much of the last digit"
    return lft([Episodes(seed=1, device=place)], ft_lr=.01, **kwargs)


STEPS = {'plain': lambda place: [], 'guided': lambda place: [LRPGuidedCallback()], 'ft': lambda place: [FTCallback()],
         'lft': lambda place: [slow_lft(place)], 'lft aux': lambda place: [slow_lft(place, aux=6)],
         'lft guided': lambda place: [slow_lft(place), LRPGuidedCallback()]}


@pytest.mark.parametrize('kind', STEPS)
@pytest.mark.parametrize('method', METHODS)
def test_training_steps(method, kind, monkeypatch, double_by_default):
    noise = torch.randn
    monkeypatch.setattr(torch, 'randn_like', lambda p: noise(p.shape, dtype=p.dtype).to(p.device))  # the same on both

    def trained(place):
        torch.manual_seed(0)
        learn = learner(STEPS[kind](place), model=build_model(method=method), lr=.01, device=place)
        learn.fit(1)
        own = (gammas(learn.lft) - start(learn.lft)).cpu() if 'lft' in kind else torch.zeros(1)
        return on_cpu(weights(learn)), own
    before, (a, ft_a), (b, ft_b) = build_model(method=method).state_dict(), *map(trained, PLACES)
    assert any(not torch.equal(a[k], before[k]) for k in a)
    for k in a: assert_close(a[k], b[k], rtol=1e-6, atol=1e-8, msg=lambda text, k=k: f'{k}: {text}')
    assert_close(ft_a, ft_b, rtol=1e-6, atol=1e-8)
    assert (ft_a.abs().max() > 1e-3) == ('lft' in kind)


@pytest.mark.parametrize('method', METHODS)
def test_evaluation_and_exported_learner(method, tmp_path):
    def table(learn): return learn.evaluate(n_episodes=6, n_query=5).attrs['episodes']['novel']
    learn = hue_learner(tmp_path/'hues', method, dls_kwargs=dict(device=GPU))
    learn.fit(1)
    assert {o.is_cuda for o in learn.dls.one_batch()} == {ON_CUDA}
    learn.export('learner.pkl')
    cpu = hue_learner(tmp_path/'hues', method)
    cpu.model.load_state_dict(on_cpu(learn.model.state_dict()))
    assert table(learn) == pytest.approx(table(cpu), abs=.05)  # what rounding decides may differ
    episode = cpu.dls.valid.one_batch()[:3]
    loaded = load_learner(tmp_path/'learner.pkl')
    with torch.no_grad(): assert_close(loaded.model.eval()(*episode), cpu.model.eval()(*episode))
    images = [sorted((tmp_path/'hues'/'novel'/f'novel{c}').glob('*.png')) for c in (0, 1, 2)]
    for known in (learn, loaded): known.set_support([f for files in images for f in files[:2]], ['a', 'a', 'b', 'b', 'c', 'c'])
    a, b = learn.predict(images[1][5]), loaded.predict(images[1][5])
    assert a[0] == b[0]
    assert_close(a[2].cpu(), b[2].cpu(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('method', METHODS)
def test_deployed_classifier(method, tmp_path):
    items, labels = examples()
    queries = examples(2, first=10)[0]
    known = classifier(method).to(GPU).fit(items, labels)
    assert known.device.type == torch.device(GPU).type
    here = known.predict_proba(queries)
    alone = [known.predict_proba([q])[0] for q in queries]
    assert_close(torch.as_tensor(here), torch.stack([torch.as_tensor(p) for p in alone]), rtol=1e-3, atol=1e-5)
    known.save(tmp_path/'known')
    loaded = FewShotClassifier.from_pretrained(tmp_path/'known')
    assert loaded.device.type == 'cpu'
    assert_close(torch.as_tensor(loaded.predict_proba(queries)), torch.as_tensor(here), rtol=1e-3, atol=1e-4)
    moved = loaded.to(GPU)
    assert_close(torch.as_tensor(moved.predict_proba(queries)), torch.as_tensor(here), rtol=1e-3, atol=1e-4)
    R = moved.explain(queries[0]).relevance
    assert R.keys() == set(labels) and all(abs(r).sum() > 0 for r in R.values())


@pytest.mark.skipif(not ON_CUDA, reason="fastai's mixed precision knows CUDA alone")
@pytest.mark.parametrize('precision', ['to_fp16', 'to_bf16'])
@pytest.mark.parametrize('method', METHODS)
def test_mixed_precision_learns_what_single_precision_does(method, precision, tmp_path):
    def losses(place, precision=None):
        torch.manual_seed(0)
        settings = dict(n_episodes=4, batch_tfms=[], device=place)
        learn = hue_learner(tmp_path/'hues', method, cbs=[LRPGuidedCallback()], dls_kwargs=settings)
        if precision: getattr(learn, precision)()
        learn.fit(1, 1e-3)
        return torch.tensor(learn.lrp_guided.losses)
    assert_close(losses(GPU, precision), losses('cpu'), rtol=5e-2, atol=5e-2)


def test_pre_training_and_fine_tuning(tmp_path):
    "Of the encoder as a classifier, then of everything, with the augmentations of training and images on the device"
    learn = hue_learner(tmp_path/'hues', cbs=[LRPGuidedCallback()], dls_kwargs=dict(n_episodes=2, device=GPU, cache=GPU))
    before = weights(learn)
    learn.fine_tune(1, pretrain_epochs=1)
    after = weights(learn)
    assert all(v.isfinite().all() and v.device.type == torch.device(GPU).type for v in after.values())
    assert any(not torch.equal(before[k], v) for k, v in after.items() if k.startswith('encoder'))


@pytest.mark.parametrize('explainer', [LRP(), GradCAM()], ids=['lrp', 'grad_cam'])
def test_faithfulness(explainer, tmp_path):
    def table(place):
        torch.manual_seed(0)
        learn = hue_learner(tmp_path/'hues', 'proto', dls_kwargs=dict(device=place, size=32))
        found = learn.faithfulness({'it': explainer}, n_episodes=1, n_query=1)
        return torch.tensor(found[found.measure != 'passes'].value.tolist())
    a, b = map(table, PLACES)
    assert_close(a, b, rtol=5e-2, atol=5e-2)
    assert len(a) > 5 and a.abs().sum() > 0


@pytest.mark.parametrize('method', METHODS)
def test_channels_last(method):
    "Another layout of the encoder's weights and images changes no guided step"
    def trained(layout):
        model = build_model(method=method)
        model.encoder.to(memory_format=layout)
        learn = learner([LRPGuidedCallback()], model=model, lr=.01, device=GPU)
        learn.fit(1)
        return on_cpu(weights(learn))
    a, b = trained(torch.contiguous_format), trained(torch.channels_last)
    for k in a: assert_close(a[k], b[k], rtol=1e-6, atol=1e-8)


def test_start_of_relevance_in_half_precision_scores():
    scores = torch.tensor([[10., -10., 3.]], device=GPU).half()
    assert relevance_start(scores).isfinite().all() and relevance_start(scores).dtype == torch.float32
