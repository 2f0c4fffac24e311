"Heatmaps as arrays, and what figures hold"
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from fsc_fastai.drawing import save_figure
from fsc_fastai.explain import plot_heatmaps, plot_support_heatmaps, to_heatmaps
from fsc_fastai.explain.heatmaps import to_image
from fsc_fastai.explain.overlay import Original, overlay_image


def test_symmetric_about_zero_and_summed_over_channels():
    R = torch.tensor([[[4., -2.], [0., 1.]]])
    np.testing.assert_allclose(to_heatmaps(R, 100), [[1, -.5], [0, .25]])
    np.testing.assert_allclose(to_heatmaps(-3 * R, 100), [[-1, .5], [0, -.25]])
    R = torch.tensor([[[3., -1.]], [[-5., -1.]], [[0., 1.]]])
    np.testing.assert_allclose(to_heatmaps(R, 100), [[-1, -.5]])


def test_one_hot_pixel_hides_nothing_and_few_are_seen():
    R = torch.ones(3, 20, 20)
    R[:, 0, 0] = 1e6
    heat = to_heatmaps(R)
    assert heat.max() == heat[5, 5] == 1
    R = torch.zeros(1, 40, 40)
    R[0, 3, 4] = -2
    assert to_heatmaps(R)[3, 4] == -1
    assert np.abs(to_heatmaps(torch.zeros(1, 4, 4))).max() == 0


def test_a_shared_scale_keeps_classes_comparable():
    R = torch.stack([torch.ones(1, 4, 4), torch.full((1, 4, 4), .5)])[None]
    assert to_heatmaps(R, 100).min() == 1
    np.testing.assert_allclose(to_heatmaps(R, 100, shared=1)[0, 1], .5)


@pytest.mark.parametrize('name, value', [('percentile', 0), ('percentile', 101), ('percentile', -3), ('smooth', -1)])
def test_impossible_settings(name, value):
    with pytest.raises(ValueError, match=f'{name}={value}'): to_heatmaps(torch.ones(1, 2, 2), **{name: value})


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
    axes = np.array(fig.axes[:-1]).reshape(3, 4)
    titles = [[ax.get_title() for ax in row] for row in axes]
    assert titles[0][1:3] == ['ant', 'bee'] and titles[0][3] == 'a very long name of a\nclass'
    assert titles[1][0] == 'ant' and titles[1][1] == 'ant 0.67' and titles[2][3].endswith('0.67')
    np.testing.assert_allclose(axes[0, 2].images[0].get_array(), to_image(data['support_x'][2]))
    last = axes[1, 2].images[-1]
    assert [o.get_text() for o in fig.axes[-1].get_yticklabels()] == ['against', '0', 'for']
    if not overlay:
        np.testing.assert_allclose(last.get_array(), to_heatmaps(data['R'])[0, 1])
        assert last.get_clim() == (-1, 1) and last.get_cmap().name == 'seismic'
    colours = [ax.spines['left'].get_edgecolor() for ax in (axes[1, 1], axes[2, 3])]
    assert colours == [plt.matplotlib.colors.to_rgba(c) for c in ('tab:green', 'tab:red')]
    assert not axes[1, 2].axison and axes[1, 1].axison


def test_figure_4_has_attention_beside_relevance():
    data = episode()
    fig = plot_heatmaps(**data, attention=torch.rand(2, 3, 2, 2))
    assert len(fig.axes) == 3 * 7 + 1
    assert np.array(fig.axes[:-1]).reshape(3, 7)[1, 2].images[0].get_array().shape == (8, 8, 3)


def test_without_support_and_labels():
    data = episode()
    fig = plot_heatmaps(data['query_x'], data['R'], data['scores'])
    assert [ax.get_title() for ax in fig.axes[:2]] == ['query', 'class 0 0.67']


def test_support_figure():
    data = episode()
    fig = plot_support_heatmaps(data['support_x'], torch.randn(3, 6, 1, 8, 8), data['support_y'])
    assert len(fig.axes) == 6 * 4 + 1 and fig.axes[1].get_title() == 'for class 0'


def test_shapes_that_do_not_fit():
    data = episode()
    with pytest.raises(ValueError, match='2 queries do not fit'): plot_heatmaps(data['query_x'], data['R'][:, :2], data['scores'])
    with pytest.raises(ValueError, match='1 class names for 3'): plot_heatmaps(**data, classes=['ant'])


LONG = [*(f'Canadian Aboriginal Syllabics, letter number {i}' for i in (1401, 1402)), 35 * 'W']


@pytest.mark.parametrize('size', [.9, 1.6])
def test_titles_of_long_names_do_not_overlap(size):
    data = episode()
    fig = plot_heatmaps(**data, query_y=torch.tensor([0, 1]), classes=LONG, size=size)
    fig.canvas.draw()
    axes = np.array(fig.axes[:-1]).reshape(3, 4)
    boxes = [ax.title.get_window_extent() for ax in axes.flat if ax.get_title()]
    assert len(boxes) == 11 and not [1 for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    pictures = [ax.images[0].get_window_extent().shrunk(.9, .9) for ax in axes.flat if ax.images]
    assert not [1 for box in boxes for picture in pictures if picture.overlaps(box)]
    first, second = (ax.get_title() for ax in axes[0, 1:3])
    assert first != second and first.endswith('1401') and '…' in first


def test_overlay_has_the_size_of_the_original_and_contours():
    "A hot spot of the model's image lies where it was cut out of the original"
    data, image = episode(n_query=1, size=16), np.full((60, 120, 3), .5)
    data |= dict(scores=data['scores'][:1], R=torch.zeros(1, 3, 3, 16, 16))
    data['R'][0, 0, :, 4:6, 12:14], data['R'][0, 1, :, 8:10, 0:2] = 1., -1.
    original = Original(image, (40., 0., 100., 60.)) # 3.75 px a pixel
    fig = plot_heatmaps(data['query_x'][:1], data['R'], data['scores'], smooth=1/32, originals=([], [original]))
    axes = fig.axes[:4]
    drawn = [np.asarray(ax.images[0].get_array()) for ax in axes]
    assert all(o.shape == image.shape for o in drawn) and np.allclose(drawn[0], image)
    redder, bluer = drawn[1][..., 0] - drawn[1][..., 2], drawn[2][..., 2] - drawn[2][..., 0]
    middle = lambda heat: np.array([(heat * i).sum() / heat.sum() for i in np.indices(heat.shape)])
    assert middle(redder) == pytest.approx([5 * 3.75, 40 + 13 * 3.75], abs=1.5)
    assert middle(bluer.clip(0))[0] == pytest.approx(9 * 3.75, abs=1.5) and (bluer[:, :40] == 0).all() and bluer.max() > .3
    lines = [[p for c in ax.collections for p in c.get_paths()] for ax in axes]
    assert [len(o) for o in lines] == [0, 3, 3, 0] # levels, of the classes that have any relevance
    without = plot_heatmaps(data['query_x'][:1], data['R'], data['scores'], contours=False)
    assert not any(ax.collections for ax in without.axes[:4])


def test_smoothing_keeps_the_sum_and_removes_the_grid():
    R = torch.zeros(1, 64, 64)
    R[:, ::2, ::2] = 1 # as strides leave it
    smooth, grid = to_heatmaps(R, 100, smooth=1/32), to_heatmaps(R, 100)
    assert smooth[8:-8, 8:-8].std() < .01 and grid.std() > .4
    one = torch.zeros(1, 64, 64)
    one[0, 32, 32] = 1
    spread = to_heatmaps(one, 100, smooth=1/32)
    assert spread.max() == 1 and spread.sum() == pytest.approx(2 * np.pi * 4, rel=.01), 'a Gaussian with σ = 2 pixels'


def test_a_comparison_has_no_column_for_what_it_compares_with():
    data = episode()
    fig = plot_heatmaps(**data, classes=['ant', 'bee', 'cat'], against=1, overlay=False)
    assert [ax.get_title() for ax in fig.axes[:3]] == ['', 'ant', 'cat'] and len(fig.axes) == 3 * 3 + 1
    assert [o.get_text() for o in fig.axes[-1].get_yticklabels()] == ['for\nbee', '0', 'for']
    np.testing.assert_allclose(fig.axes[5].images[0].get_array(), to_heatmaps(data['R'])[0, 2])
    fig = plot_support_heatmaps(data['support_x'], torch.randn(3, 6, 1, 8, 8), data['support_y'], against=0)
    assert [ax.get_title() for ax in fig.axes[1:3]] == ['for class 1', 'for class 2']


def test_figures_are_saved_as_vectors_or_pixels(tmp_path):
    data = episode(n_way=2) | dict(scores=torch.rand(1, 2), query_x=torch.rand(1, 3, 8, 8), R=torch.randn(1, 2, 3, 8, 8))
    plot_heatmaps(**data, cmap='PuOr_r', save=tmp_path/'new'/'a.svg')
    plot_support_heatmaps(data['support_x'][::2], torch.randn(2, 2, 1, 8, 8), data['support_y'][::2], save=str(tmp_path/'b.pdf'))
    fig = plot_heatmaps(**data, save=tmp_path/'c.png')
    for file, start in {'new/a.svg': b'<?xml', 'b.pdf': b'%PDF', 'c.png': b'\x89PNG'}.items():
        assert (tmp_path/file).read_bytes().startswith(start)
    assert plt.imread(tmp_path/'c.png').shape[1] == pytest.approx(200 * fig.get_figwidth(), rel=.1)
    with pytest.raises(ValueError, match="'xyz' is not supported"): save_figure(tmp_path/'a.xyz', fig)
    assert not (tmp_path/'a.xyz').exists()


def test_a_picture_of_its_own_at_the_size_of_the_original():
    heat = np.zeros((8, 8), dtype=np.float32)
    heat[2:4, 2:4] = 1
    found = overlay_image(heat, Original(np.full((40, 80, 3), .5), (20., 0., 60., 40.)), contours=False)
    pixels = np.asarray(found).astype(int)
    assert found.size == (80, 40) and pixels[15, 35, 0] > 80 + pixels[15, 35, 2] and np.ptp(pixels[30, 70]) == 0
