"Explainers of images: Grad-CAM, occlusion, the contrast of classes, rules by depth; on models whose answer is known"
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fsc_fastai.encode.encoder import Encoder
from fsc_fastai.explain import (
    LRP,
    AlphaBeta,
    Flat,
    Gamma,
    GammaByDepth,
    GradCAM,
    GradientXInput,
    IntegratedGradients,
    Occlusion,
    ZBox,
    alpha2_beta1_flat,
    explain_images,
    plus_flat,
    relevance_start,
)
from fsc_fastai.explain.weights import contrast, log_odds
from fsc_fastai.methods import create_fsc_model

from ..methods.toys import METHODS
from .test_to_pixels import few_shot

EXPLAINERS = dict(default=LRP.faithful(), lrp=LRP(), r_form=LRP(form='R'), contrast=LRP(start='contrast'),
                  flat=LRP(encoder=plus_flat()), alpha2=LRP(encoder=alpha2_beta1_flat()),
                  gamma=LRP(encoder=GammaByDepth()), cam=GradCAM(), occlusion=Occlusion(16),
                  gradient=GradientXInput(start='contrast'), integrated=IntegratedGradients(2, start='contrast'))


@pytest.mark.parametrize('name', EXPLAINERS)
@pytest.mark.parametrize('method', METHODS)
def test_every_method(method, name):
    model, episode = few_shot(method)
    R = explain_images(model, *episode, EXPLAINERS[name])
    assert len(repr(R)) < 200
    assert R.query.shape == (3, 3, 3, 32, 32) and R.support.shape == (3, 3, 3, 3, 32, 32)
    for r in (R.query, R.support): assert r.isfinite().all() and not r.requires_grad
    assert R.query.abs().sum() > 0
    with torch.no_grad(): assert_close(R.scores, model(*episode))
    summed = explain_images(model, *episode, EXPLAINERS[name], support=False, sum_channels=True)
    assert summed.support is None
    assert_close(summed.query, R.query.sum(2, keepdim=True), rtol=1e-3, atol=1e-5)
    f_p = model.process(model.encode(episode[0]), episode[1], model.encode(episode[2]))
    assert EXPLAINERS[name](model, f_p).shape == f_p.features.shape


def test_the_contrast_is_the_gradient_of_log_odds():
    scores = torch.randn(2, 4).double().requires_grad_()
    p = scores.softmax(-1)
    for c in range(4):
        log_odds_of_c = (p[:, c] / (1 - p[:, c])).log()
        expected, = torch.autograd.grad(log_odds_of_c.sum(), scores, retain_graph=True)
        assert_close(contrast(scores)[:, c], expected)
        assert_close(log_odds(scores)[:, c], log_odds_of_c)


def test_two_classes_that_share_everything_cancel_in_contrast():
    "A ProtoNet on pixels: R = q(p_c − p_other), which is 0 where the classes are alike, and exact elsewhere"
    model = create_fsc_model('proto', nn.Identity(), img_size=4, in_chans=1, n_way=2, pool='flatten').double().eval()
    support_x, query_x = torch.rand(2, 1, 4, 4).double(), torch.rand(1, 1, 4, 4).double() + .5
    support_x[1, :, 2:] = support_x[0, :, 2:]
    y = torch.arange(2)
    for explainer, factor in ((LRP(1e-9, start='contrast'), 1), (GradientXInput(start='contrast'), 2)):  # of a square
        R = explain_images(model, support_x, y, query_x, explainer)
        assert_close(R.query[0, 0], factor * query_x[0] * (support_x[0] - support_x[1]), rtol=1e-6, atol=1e-6)
        assert_close(R.query[0, 1], -R.query[0, 0])
        assert R.query[0, 0, 0, 2:].abs().max() < 1e-6


@pytest.mark.parametrize('start,what', [('log-odds', relevance_start), ('contrast', log_odds)])
def test_occlusion_is_what_the_score_loses(start, what):
    model, (support_x, y, query_x) = few_shot('proto')
    R = explain_images(model, support_x, y, query_x, Occlusion(16, start=start))
    covered = query_x.clone()
    covered[:, :, :16, 16:] = query_x.mean((2, 3), keepdim=True)
    with torch.no_grad(): fall = what(model(support_x, y, query_x)) - what(model(support_x, y, covered))
    assert_close(R.query[:, :, :, :16, 16:].sum((2, 3, 4)), fall, rtol=1e-4, atol=1e-4)
    covered = support_x.clone()
    covered[1, :, 16:, :16] = support_x[1].mean((1, 2))[:, None, None]
    with torch.no_grad(): fall = what(model(support_x, y, query_x)) - what(model(covered, y, query_x))
    assert_close(R.support[:, :, 1, :, 16:, :16].sum((2, 3, 4)), fall, rtol=1e-4, atol=1e-4)


def test_occlusion_at_edges_that_fit_no_patch():
    model, episode = few_shot('proto')
    R = explain_images(model, *episode, Occlusion(20, 'blur'), support=False).query
    assert R.shape == (3, 3, 3, 32, 32)
    assert len(R[0, 0, 0].unique()) <= 4
    with pytest.raises(ValueError, match="replace='black'"): explain_images(model, *episode, Occlusion(replace='black'))


def test_grad_cam_by_hand():
    "ReLU of the map's channels, weighted by the mean gradient of the log-odds"
    body = nn.Conv2d(3, 4, 4, stride=4, bias=False)
    model = create_fsc_model('proto', Encoder(body, 16, 3), n_way=3).double().eval()
    support_x, y, query_x = torch.randn(3, 3, 16, 16).double(), torch.arange(3), torch.randn(2, 3, 16, 16).double()
    R = explain_images(model, support_x, y, query_x, GradCAM(), support=False).query.sum(2)
    f = body(query_x).requires_grad_()
    p = model.classify(model.process(body(support_x), y, f)).softmax(1)
    for c in range(3):
        g, = torch.autograd.grad((p[:, c] / (1 - p[:, c])).log().sum(), f, retain_graph=True)
        cam = (g.mean((2, 3), keepdim=True) * f).sum(1, keepdim=True).relu()
        large = nn.functional.interpolate(cam, (16, 16), mode='bilinear', align_corners=False)[:, 0]
        assert_close(R[:, c], large.detach())


def test_rules_of_the_encoder_leave_the_classifier_alone():
    "Position 0 is the layer at the pixels, not the first one of the relation module"
    model, episode = few_shot('relation')
    f_p = model.process(model.encode(episode[0]), episode[1], model.encode(episode[2]))
    deep = LRP(encoder={0: ZBox(-3., 3.)})
    assert_close(deep(model, f_p), LRP()(model, f_p))
    assert deep.as_published and not torch.allclose(explain_images(model, *episode, deep).query,
                                                    explain_images(model, *episode).query)


def test_presets_of_rules():
    def layer(kind): return lambda i: type('L', (), dict(name='x', position=i, kind=kind))()
    conv, linear = layer(nn.Conv2d), layer(nn.Linear)
    assert plus_flat()(conv(0), 5) == Flat() and plus_flat()(conv(1), 5) == AlphaBeta(1.)
    assert alpha2_beta1_flat()(conv(0), 5) == Flat() and alpha2_beta1_flat()(conv(4), 5) == AlphaBeta(2.)
    assert [GammaByDepth(1.)(conv(i), 5).gamma for i in range(5)] == [1, .75, .5, .25, 0]
    assert GammaByDepth(1., {0: Flat()})(linear(0), 5) == Flat() and GammaByDepth(1.)(conv(0), 1) == Gamma(1.)
