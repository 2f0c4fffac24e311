"In-place operations, on views too; and that nothing of an explanation is kept once it is over"
import gc
import resource

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.explain import (
    LRP,
    GradCAM,
    Occlusion,
    explain_images,
    plot_heatmaps,
    plus_flat,
)
from fsc_fastai.explain.engine import trace
from fsc_fastai.explain.settings import Settings
from fsc_fastai.methods import create_fsc_model

from ..callback.episodes import build_model, learner
from ..methods.toys import METHODS, feature_episode, feature_model
from .nets import OF_FEATURES, images, random_cnn


def maps(x): return F.conv2d(x, torch.linspace(-1, 1, 108).view(4, 3, 3, 3).sin().double(), padding=1)


def view(x):
    y = maps(x)
    y[:, :2].relu_()
    y[:, 2:] = y[:, 2:] * 2
    y += x.clone()[:, :1].div_(3)
    return y

def view_neat(x):
    y = maps(x)
    return torch.cat([y[:, :2].relu(), y[:, 2:] * 2], 1) + x[:, :1] / 3


def base_and_views(x):
    y = maps(x)
    v = y[:, 1:3]
    y.mul_(2)
    u = v[:, 0]
    u.add_(y[:, 3])
    y[:, 3].zero_()
    return torch.cat([y, v], 1)

def base_and_views_neat(x):
    y = maps(x) * 2
    sum_ = y[:, 1] + y[:, 3]
    return torch.stack([y[:, 0], sum_, y[:, 2], 0 * sum_.detach(), sum_, y[:, 2]], 1)


def buffer(x):
    y = maps(x)
    z = torch.zeros_like(y.detach())
    z[:, :2].copy_(y[:, 2:])
    z.transpose(1, 2)[:, 1].mul_(3)
    y.unsqueeze_(1)
    y[:, 0].relu_()
    return y.squeeze(1) + z

def buffer_neat(x):
    y = maps(x)
    z = torch.cat([y[:, 2:], 0 * y[:, 2:].detach()], 1)
    return F.relu(y) + torch.stack([z[:, :, i] * (3 if i == 1 else 1) for i in range(z.shape[2])], 2)


def into_a_result(x):
    out = torch.empty_like(x[:, :, 1:])
    torch.mul(x[:, :, 1:], 2, out=out)
    return out.detach_().clone() + x[:, :, 1:]

def into_a_result_neat(x): return (2 * x[:, :, 1:]).detach() + x[:, :, 1:]


@pytest.mark.parametrize('form', ['R', 'g'])
@pytest.mark.parametrize('messy,neat', [(view, view_neat), (base_and_views, base_and_views_neat), (buffer, buffer_neat)],
                         ids=lambda f: f.__name__)
def test_what_is_written_to_a_view_its_base_and_the_other_views_see(messy, neat, form):
    x, settings = images(size=6), Settings(form=form)
    run, wanted = trace(messy, x, settings=settings), trace(neat, x, settings=settings)
    assert_close(run.out, wanted.out)
    starts = torch.randn(3, *run.out.shape).double()
    assert_close(run.relevance(starts), wanted.relevance(starts))


def test_a_result_that_is_written_into_a_tensor():
    x = images(size=6)
    run, wanted = trace(into_a_result, x), trace(into_a_result_neat, x)
    R = run.out.detach()
    assert_close(R, wanted.out.detach())
    assert_close(run.relevance(R), wanted.relevance(R))


def test_dropout_in_training_gives_a_tensor_apart_from_its_input():
    x = images(size=6)
    def net(x):
        y = maps(x)
        z = F.dropout(y, .5, training=True)
        z.relu_()
        return y + z
    run, wanted = trace(net, x), trace(lambda x: maps(x) + maps(x).relu(), x)
    assert_close(run.out, wanted.out)


def test_nothing_is_written_to_what_comes_from_outside():
    x, constant = images(size=6), torch.ones(2, 3, 6, 6).double()
    before = x.clone()
    def net(x):
        x[:, 0].mul_(2)
        constant[:, 1].add_(x[:, 1])
        constant[:, 2].zero_()
        return x + constant
    found = trace(net, x).out.detach()
    assert_close(x, before, rtol=0, atol=0)
    assert (constant == 1).all()
    assert_close(found, torch.stack([2 * x[:, 0] + 1, 2 * x[:, 1] + 1, x[:, 2]], 1))


# What is kept

def alive():
    "Tensors and nodes of custom functions that somebody refers to, without asking the collector of cycles"
    return sum(issubclass(type(o), (torch.Tensor, torch.autograd.Function)) for o in gc.get_objects())


def assert_nothing_kept(run, times=3):
    "After a first time, which may prepare things"
    run()
    gc.collect()
    gc.disable()  # a cycle that only the collector finds would hold memory for long
    try:
        before = alive()
        for _ in range(times): run()
        assert alive() <= before
    finally: gc.enable()


@pytest.mark.parametrize('form', ['R', 'g'])
@pytest.mark.parametrize('norm', ['identity', 'fold'])
def test_a_network_that_overwrites(form, norm):
    net, x, lrp = random_cnn(), images(), LRP(form=form, norm=norm)
    assert_nothing_kept(lambda: lrp.relevance(net, x))


def test_a_network_that_fails_half_way():
    def net(x):
        y = maps(x).relu_()
        raise RuntimeError('half-way')
        return y
    def run():
        with pytest.raises(RuntimeError, match='half-way'): trace(net, x)
    x = images()
    run()
    gc.collect()
    before = alive()
    for _ in range(3): run()
    gc.collect()  # an error has a cycle of its own, its traceback
    assert alive() <= before


@pytest.mark.parametrize('explainer', OF_FEATURES.values(), ids=OF_FEATURES)
@pytest.mark.parametrize('method', METHODS)
def test_processed_features(method, explainer):
    model = feature_model(method).train()
    support, y, query, _ = feature_episode()
    assert_nothing_kept(lambda: explainer(model, model.process(support, y, query)))


OF_IMAGES = OF_FEATURES | {'contrast': LRP(start='contrast', encoder=plus_flat()), 'Grad-CAM': GradCAM(),
                           'occlusion': Occlusion(16)}


@pytest.mark.parametrize('explainer', OF_IMAGES.values(), ids=OF_IMAGES)
def test_pixels_and_their_figures(explainer):
    torch.manual_seed(0)
    model = create_fsc_model('relation', 'resnet10', n_way=2, img_size=32).eval()
    support, y, query = torch.randn(2, 3, 32, 32), torch.arange(2), torch.randn(2, 3, 32, 32)
    assert_nothing_kept(lambda: explain_images(model, support, y, query, explainer), times=2)
    if explainer is not OF_FEATURES['written out']: return
    def figure():
        R = explain_images(model, support, y, query, explainer)
        plt.close(plot_heatmaps(query, R.query, R.scores, support, y))
    figure()
    gc.collect()
    before = alive()
    for _ in range(2): figure()
    gc.collect()  # figures have cycles of their own
    assert alive() <= before


@pytest.mark.slow
@pytest.mark.parametrize('explainer', [None, LRP.published()], ids=['default', 'published'])
def test_the_process_does_not_grow_over_200_explanations(explainer):
    "Its largest size after 50 of them is its largest size after 250: a graph that were kept would weigh megabytes each time"
    model = create_fsc_model('proto', 'conv4', n_way=2, img_size=48).eval()
    support, y, query = torch.randn(2, 3, 48, 48), torch.arange(2), torch.randn(2, 3, 48, 48)
    def largest(n):
        for _ in range(n): explain_images(model, support, y, query, explainer)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = largest(50)
    assert largest(200) <= 1.01 * before


@pytest.mark.parametrize('engine', [False, True])
@pytest.mark.parametrize('method', ['relation', 'can', 'gnn'])
def test_guided_training(method, engine):
    learn = learner([LRPGuidedCallback(explainer=LRP(engine=engine))], n=2, model=build_model(method=method))
    def fit():
        learn.fit(1)
        gc.collect()  # a fit has cycles of its own
        return alive()
    fit()
    assert fit() == fit() == fit()
