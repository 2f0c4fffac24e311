"The guided loss as one function: what the callback computes, and what torch.compile takes as a whole"
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch._inductor import config as inductor
from torch.testing import assert_close

from fsc_fastai.callback.guided import LRPGuidedCallback, guided_loss
from fsc_fastai.explain import LRP, GradientXInput
from tests.callback.episodes import StepLosses, build_model, learner
from tests.methods.toys import METHODS, feature_episode, feature_model


def value_and_gradients(f, model, *episode):
    "The loss, and its gradients by the feature maps and the weights"
    support, support_y, query, query_y = episode
    maps = [x.clone().requires_grad_() for x in (support, query)]
    loss = f(model, maps[0], support_y, maps[1], query_y)
    return loss.detach(), torch.autograd.grad(loss, [*maps, *model.parameters()], allow_unused=True)


def episode():
    support, support_y, query, query_y = feature_episode()
    return support, F.one_hot(support_y.as_subclass(torch.Tensor)).float(), query, query_y.as_subclass(torch.Tensor)


@pytest.fixture
def whole():
    "Compiles without a break, or fails"
    torch._dynamo.reset()
    yield lambda backend: torch.compile(guided_loss, fullgraph=True, backend=backend)
    torch._dynamo.reset()


def check_compiled(compiled, method, dtype=torch.float32):
    model, parts = feature_model(method).train().to(dtype), [o.to(dtype) if o.is_floating_point() else o for o in episode()]
    expected, found = (value_and_gradients(f, model, *parts) for f in (guided_loss, compiled))
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found[1][1].abs().sum() > 0


@pytest.mark.parametrize('method, backend', [
    ('relation', 'aot_eager'), ('can', 'eager'), ('gnn', 'eager'),
    *(pytest.param(m, 'aot_eager', marks=pytest.mark.slow) for m in METHODS if m != 'relation')])
def test_is_compiled_as_a_whole(whole, method, backend):
    "Traced without a break; with `aot_eager` its derivative, too"
    check_compiled(whole(backend), method)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ('c++', 'g++', 'clang++'))), reason='the inductor needs a C++ compiler: none here')
@pytest.mark.parametrize('method', ['relation', 'gnn'])
def test_is_compiled_to_machine_code(whole, method, tmp_path, monkeypatch):
    """In double precision: in single the gradients of a GNNNet are rounded by 2e-5, compiled or not.

    Without vector instructions, whose headers take a C++ compiler longer than all the rest.
    """
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))
    with inductor.patch({'cpp.simdlen': 1, 'compile_threads': 1}): check_compiled(whole('inductor'), method, torch.float64)


@pytest.mark.parametrize('settings', [{}, dict(xi=0., lam=2.), dict(explainer=GradientXInput()), dict(over='map'),
                                      dict(explainer=LRP(engine=True))],
                         ids=['defaults', 'the guided loss alone', 'gradient x input', 'by map', 'engine'])
@pytest.mark.parametrize('method', ['relation', 'can', 'gnn'])
def test_is_the_loss_of_the_callback(method, settings):
    guided = LRPGuidedCallback(**{'xi': 1., 'lam': 1.} | settings)
    learn = learner([guided, losses := StepLosses()], n=1, model=build_model(method=method), lr=0.)
    support_x, support_y, query_x, query_y = learn.dls.train.episode(0)
    model = build_model(method=method).train()
    f = model.encode(torch.cat([support_x, query_x]))
    expected = guided_loss(model, f[:len(support_x)], support_y, f[len(support_x):], query_y, **settings)
    learn.fit(1)
    assert_close(losses.seen[0].as_subclass(torch.Tensor), expected.detach().as_subclass(torch.Tensor), rtol=1e-6, atol=1e-8)
