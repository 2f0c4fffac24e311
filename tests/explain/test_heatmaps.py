"Heatmaps as arrays, and what figures hold"
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from fsc_fastai.explain import plot_heatmaps, plot_support_heatmaps, to_heatmaps
from fsc_fastai.explain.heatmaps import to_image


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close('all')


def test_symmetric_about_zero():
    R = torch.tensor([[[4., -2.], [0., 1.]]])
    np.testing.assert_allclose(to_heatmaps(R, 100), [[1, -.5], [0, .25]])
    np.testing.assert_allclose(to_heatmaps(-3 * R, 100), [[-1, .5], [0, -.25]])


def test_channels_are_summed():
    R = torch.tensor([[[3., -1.]], [[-5., -1.]], [[0., 1.]]])
    np.testing.assert_allclose(to_heatmaps(R, 100), [[-1, -.5]])


def test_one_hot_pixel_hides_nothing():
    R = torch.ones(3, 20, 20)
    R[:, 0, 0] = 1e6
    heat = to_heatmaps(R)
    assert heat.max() == heat[5, 5] == 1


def test_few_relevant_pixels_are_seen():
    R = torch.zeros(1, 40, 40)
    R[0, 3, 4] = -2
    assert to_heatmaps(R)[3, 4] == -1
    assert np.abs(to_heatmaps(torch.zeros(1, 4, 4))).max() == 0


def test_a_shared_scale_keeps_classes_comparable():
    R = torch.stack([torch.ones(1, 4, 4), torch.full((1, 4, 4), .5)])[None]
    assert to_heatmaps(R, 100).min() == 1
    np.testing.assert_allclose(to_heatmaps(R, 100, shared=1)[0, 1], .5)


@pytest.mark.parametrize('percentile', [0, 101, -3])
def test_impossible_percentile(percentile):
    with pytest.raises(ValueError, match=f'percentile={percentile}'): to_heatmaps(torch.ones(1, 2, 2), percentile)


@pytest.mark.parametrize('channels', [1, 3])
def test_images_of_any_range(channels):
    for x in (torch.randn(channels, 5, 6), torch.rand(channels, 5, 6), torch.full((channels, 5, 6), -2.)):
        image = to_image(x)
        assert image.shape == (5, 6, 3) and image.min() >= 0 and image.max() <= 1


def episode(n_query=2, n_way=3, size=8):
    y = torch.arange(n_way).repeat_interleave(2)
    scores = torch.tensor([[2., 0., 1.], [0., 1., 2.]])
    return dict(query_x=torch.rand(n_query, 3, size, size), R=torch.randn(n_query, n_way, 3, size, size), scores=scores,
                support_x=torch.rand(2 * n_way, 3, size, size), support_y=y)


@pytest.mark.parametrize('overlay', [False, True])
def test_figure_1(overlay):
    data = episode()
    names = ['ant', 'bee', 'a very long name of a class']
    fig = plot_heatmaps(**data, query_y=torch.tensor([0, 1]), classes=names, overlay=overlay)
    axes = np.array(fig.axes).reshape(3, 4)
    titles = [[ax.get_title() for ax in row] for row in axes]
    assert titles[0][1:3] == ['ant', 'bee'] and titles[0][3].endswith('…')
    assert titles[1][0] == 'ant' and titles[1][1] == 'ant 0.67' and titles[2][3].endswith('0.67')
    np.testing.assert_allclose(axes[0, 2].images[0].get_array(), to_image(data['support_x'][2]))
    last = axes[1, 2].images[-1]
    if not overlay:
        np.testing.assert_allclose(last.get_array(), to_heatmaps(data['R'])[0, 1])
        assert last.get_clim() == (-1, 1) and last.get_cmap().name == 'seismic'
    colours = [ax.spines['left'].get_edgecolor() for ax in (axes[1, 1], axes[2, 3])]
    assert colours == [plt.matplotlib.colors.to_rgba(c) for c in ('tab:green', 'tab:red')]
    assert not axes[1, 2].axison and axes[1, 1].axison


def test_figure_4_has_attention_beside_relevance():
    data = episode()
    fig = plot_heatmaps(**data, attention=torch.rand(2, 3, 2, 2))
    assert len(fig.axes) == 3 * 7
    assert np.array(fig.axes).reshape(3, 7)[1, 2].images[0].get_array().shape == (8, 8, 3)


def test_without_support_and_labels():
    data = episode()
    fig = plot_heatmaps(data['query_x'], data['R'], data['scores'])
    assert [ax.get_title() for ax in fig.axes[:2]] == ['query', 'class 0 0.67']


def test_support_figure():
    data = episode()
    fig = plot_support_heatmaps(data['support_x'], torch.randn(3, 6, 1, 8, 8), data['support_y'], overlay=True)
    assert len(fig.axes) == 6 * 4 and fig.axes[1].get_title() == 'for class 0'


def test_shapes_that_do_not_fit():
    data = episode()
    with pytest.raises(ValueError, match='2 queries do not fit'): plot_heatmaps(data['query_x'], data['R'][:, :2], data['scores'])
    with pytest.raises(ValueError, match='1 class names for 3'): plot_heatmaps(**data, classes=['ant'])
