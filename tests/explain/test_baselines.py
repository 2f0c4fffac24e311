"Gradient × input and integrated gradients in the place of LRP"
import pytest
import torch
from torch.testing import assert_close

from fsc_fastai.explain import LRP, Explainer, GradientXInput, IntegratedGradients, relevance_start

from ..methods.toys import processed


def test_gradient_by_hand():
    "Of a negative squared distance: −2(q − p)·q and 2(q − p)·p, times R_c"
    model, f_p = processed('proto')
    q, p = f_p.query[:, None], f_p.support[None]
    expected = torch.cat([2*(q - p)*p, -2*(q - p)*q], 2) * relevance_start(model.classify(f_p))[..., None]
    assert_close(GradientXInput()(model, f_p), expected)


def test_integrated_gradients_are_complete():
    "They add up to the difference of the scores at the features and at zero"
    model, f_p = processed('proto')
    R = IntegratedGradients(1)(model, f_p).sum(2)  # the midpoint is exact for a square
    scores = model.classify(f_p)
    assert_close(R, scores * relevance_start(scores))


def test_batch_statistics_are_constants():
    "Or the gradients of the pairs of a batch would cancel"
    model, f_p = processed('relation')
    model.double()
    one = GradientXInput()(model, f_p.features.double())
    _, sigma = torch.randn(1), [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    # with the statistics of this batch as running ones, the gradient is the plain one
    x, seen = f_p.features.double().requires_grad_(), []
    hooks = [m.register_forward_hook(lambda m, i, o: seen.append((m, i[0]))) for m in sigma]
    model.classify(x)
    for hook in hooks: hook.remove()
    for m, i in seen:
        m.track_running_stats = True
        m.running_mean, m.running_var = i.detach().mean((0, 2, 3)), i.detach().var((0, 2, 3), unbiased=False)
    scores = model.eval().classify(x)
    expected = torch.autograd.grad(scores, x, relevance_start(scores))[0] * x
    assert_close(one, expected.detach())


def test_what_an_explainer_has_to_say():
    assert all(issubclass(cls, Explainer) for cls in (LRP, GradientXInput, IntegratedGradients))
    with pytest.raises(TypeError, match='abstract.*trace'): type('Mine', (Explainer,), {'__call__': lambda *args: None})()
