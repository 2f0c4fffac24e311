"BiLRP: which part of one image meets which part of another"
import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fsc_fastai.explain import LRP, Epsilon, GradientXInput, IntegratedGradients, explain_pair
from fsc_fastai.explain.pair import directions
from fsc_fastai.methods import create_fsc_model


class Bare(nn.Module):
    "A net of convolutions without biases"
    def __init__(self, *layers, size):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.out_shape = tuple(self.layers(torch.zeros(1, 3, size, size, dtype=torch.float64)).shape[1:])

    def forward(self, x): return self.layers(x)


def bare(method='proto', size=8, linear=False, **kwargs):
    "A few-shot model in double precision on such a net, and two images"
    torch.manual_seed(0)
    conv = lambda *args, **kwargs: nn.Conv2d(*args, **kwargs, bias=False).double()
    layers = [conv(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), conv(8, 12, 3), nn.ReLU()]
    if linear: layers = [conv(3, 12, 4, stride=4)]
    model = create_fsc_model(method, Bare(*layers, size=size), **kwargs).double().eval()
    return model, torch.randn(3, size, size).double(), torch.randn(3, size, size).double()


EXACT = LRP(eps=0.)
SCORES = [('proto', dict(distance='cosine')), ('proto', dict(distance='euclidean')), ('matching', {}), ('can', {}),
          ('proto', dict(distance='cosine', pool='flatten'))]


@pytest.mark.parametrize('method, kwargs', SCORES)
def test_all_of_the_similarity_arrives(method, kwargs):
    model, a, b = bare(method, **kwargs)
    found = explain_pair(model, a, b, EXACT, grid=4, n_components=None)
    assert found.relevance.shape == (4, 4, 4, 4)
    assert found.relevance.sum().item() == pytest.approx(found.similarity, rel=1e-6)
    scores = model(b[None], torch.tensor([0]), a[None]).item()
    f = [model.encode(x[None]).mean((2, 3)) for x in (a, b)]
    if kwargs.get('distance') == 'euclidean':
        assert 2*found.similarity - sum(o.square().sum().item() for o in f) == pytest.approx(scores)
    elif method != 'matching': assert model.scale * found.similarity == pytest.approx(scores)
    else: assert found.similarity == pytest.approx(torch.cosine_similarity(*f).item())


def test_a_linear_net_by_hand():
    "Relevance of pixel i for feature k is w_ki x_i; a pair of pixels gets the sum of the products over the features"
    model, a, b = bare(linear=True, distance='euclidean')
    w = model.encoder.body.layers[0].weight.detach() # (12, 3, 4, 4), on 2×2 patches, whose mean the vectors are
    found = explain_pair(model, a, b, LRP(composite={nn.Conv2d: Epsilon(0.)}),
                         grid=8, n_components=None).relevance
    of = lambda x: (w.repeat(1, 1, 2, 2) * x / 4).sum(1) # (12, 8, 8)
    assert_close(found, torch.einsum('kij,kmn->ijmn', of(a), of(b)))
    coarse = explain_pair(model, a, b, GradientXInput(), grid=2, n_components=None).relevance
    assert_close(coarse, found.reshape(2, 4, 2, 4, 2, 4, 2, 4).sum((1, 3, 5, 7)))


def test_gradients_explain_too():
    model, a, b = bare(distance='euclidean')
    for explainer in (GradientXInput(), IntegratedGradients(2)):
        found = explain_pair(model, a, b, explainer, n_components=None)
        assert found.relevance.sum().item() == pytest.approx(found.similarity, rel=1e-6), 'the net is homogeneous'


def test_cells_that_do_not_divide_the_image():
    model, a, b = bare(size=10, distance='cosine')
    one, three, all_ = (explain_pair(model, a, b, EXACT, grid=g, n_components=None).relevance for g in (1, 3, 10))
    assert_close(three.sum(), one.sum())
    assert_close(three[0, 0, 2, 2], all_[:4, :4, 7:, 7:].sum())


def test_random_directions_are_right_on_average():
    model, a, b = bare(distance='cosine')
    exact = explain_pair(model, a, b, EXACT, grid=2, n_components=None).relevance
    found = torch.stack([explain_pair(model, a, b, EXACT, grid=2, n_components=3, seed=seed).relevance for seed in range(60)])
    z = (found.mean(0) - exact) / (found.std(0) / 60**.5)
    assert found.std(0).min() > 0 and z.abs().max() < 4 and (found.std(0) / 60**.5 < .4 * exact.abs()).all()
    by = lambda n, seed: explain_pair(model, a, b, EXACT, grid=2, n_components=n, seed=seed).relevance
    error = lambda n: sum((by(n, seed) - exact).norm() for seed in range(5))
    assert error(11) < .5 * error(4) < .5 * error(2)
    assert_close(explain_pair(model, a, b, EXACT, grid=2, n_components=12).relevance, exact)


def test_directions():
    W = directions(20, 5)
    assert_close(W @ W.T, 4 * torch.eye(5)), assert_close(directions(20, 5), W)
    assert_close(directions(20, 25), torch.eye(20))


def test_a_centre_takes_off_what_all_vectors_share():
    model, a, b = bare(distance='euclidean')
    others = torch.randn(3, 3, 8, 8).double()
    f, m = [model.encode(x[None]).mean((2, 3))[0] for x in (a, b)], model.encode(others).mean((0, 2, 3))
    found = explain_pair(model, a, b, EXACT, n_components=None, centre=others)
    assert found.similarity == pytest.approx(((f[0] - m) @ (f[1] - m)).item())
    alive = (f[0] > 0) & (f[1] > 0)
    assert not alive.all() and found.relevance.sum().item() == pytest.approx(((f[0] - m) @ ((f[1] - m) * alive)).item(), rel=1e-6)


def test_the_same_spot_meets_itself():
    "Two images that share one small pattern are connected there and nowhere else"
    torch.manual_seed(1)
    net = Bare(nn.Conv2d(3, 12, 2, stride=2, bias=False).double(), nn.ReLU(), size=16)
    model = create_fsc_model('proto', net, distance='cosine')
    a, b, pattern = torch.zeros(3, 16, 16).double(), torch.zeros(3, 16, 16).double(), torch.randn(3, 4, 4).double()
    a[:, :4, 4:8], b[:, 8:12, :4] = pattern, pattern
    cells = explain_pair(model.eval(), a, b, grid=4, n_components=None).strongest()
    assert [o[:2] for o in cells] == [((0, 1), (2, 0))] and cells[0][2] == pytest.approx(1, rel=.01)


@pytest.mark.parametrize('method', ['proto', 'can'])
def test_batch_norms_and_a_transformer(method):
    torch.manual_seed(0)
    for arch, size in (('conv4', 32), ('test_vit', 160)):
        model = create_fsc_model(method, arch, img_size=size).eval()
        found = explain_pair(model, *torch.randn(2, 3, size, size), n_components=4)
        assert found.relevance.isfinite().all() and found.relevance.abs().sum() > 0
        assert not found.relevance.requires_grad and len(repr(found)) < 300


def test_plot_draws_the_strongest_connections(tmp_path):
    model, a, b = bare(distance='cosine')
    found = explain_pair(model, a, b, n_components=None)
    fig = found.plot(n=7, names=('a name that goes on and on, for longer than the picture', 'b'), save=tmp_path/'sub'/'pair.svg')
    lines = fig.artists[0]
    assert len(lines.get_segments()) == 7 and lines.get_array()[-1] in (1, -1)
    (a_cell, b_cell, R), at = found.strongest(1)[0], fig.transFigure.transform(lines.get_segments()[-1])
    for ax, cell, xy in zip(fig.axes, (a_cell, b_cell), at):
        assert ax.transData.inverted().transform(xy) == pytest.approx(np.array(cell)[::-1] + 0., abs=1e-6)
    assert lines.get_linewidths()[-1] == max(lines.get_linewidths()) and np.sign(R) == np.sign(lines.get_array()[-1])
    assert (tmp_path/'sub'/'pair.svg').read_text().startswith('<?xml')


@pytest.mark.parametrize('call, error, told', [
    (lambda m, x: explain_pair(m.train(), x, x), ValueError, r'call model.eval\(\)'),
    (lambda m, x: explain_pair(m, x, x[:, :4]), ValueError, r'\(3, 8, 8\) and \(3, 4, 8\)'),
    (lambda m, x: explain_pair(m, x, x, grid=9), ValueError, 'grid=9: from 1 to the 8'),
    (lambda m, x: explain_pair(m, x, x, n_components=0), ValueError, 'n_components=0'),
])
def test_what_cannot_be_explained(call, error, told):
    with pytest.raises(error, match=told): call(bare()[0], torch.randn(3, 8, 8).double())


@pytest.mark.parametrize('method, kwargs', [('relation', {}), ('matching', dict(fce=True)), ('gnn', {})])
def test_methods_that_compare_otherwise_say_so(method, kwargs):
    model = create_fsc_model(method, 'conv4', img_size=32, **kwargs).eval()
    with pytest.raises(TypeError, match=f'{type(model).__name__} compares'): explain_pair(model, *torch.randn(2, 3, 32, 32))
