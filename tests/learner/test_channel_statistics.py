"Figure 3: how balanced the channels are"
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from fsc_fastai.learner.channel_statistics import channel_statistics, plot_feature_statistics
from tests.learners import hue_learner


def test_formula_on_values_that_numpy_finds():
    "95 % quantile over the positions; over the channels its variance and the difference of the 95 % and 45 % quantiles"
    f = torch.rand(3, 7, 4, 5, generator=torch.Generator().manual_seed(0))
    pooled = np.quantile(f.double().flatten(2).numpy(), 0.95, axis=2)
    expected = pooled.var(1), np.quantile(pooled, 0.95, axis=1) - np.quantile(pooled, 0.45, axis=1)
    for found, value in zip(channel_statistics(f), expected, strict=True): np.testing.assert_allclose(found, value, rtol=1e-5)


def test_equal_channels_are_balanced_and_a_single_loud_one_is_not():
    even = torch.ones(1, 20, 2, 2)
    loud = even.clone()
    loud[:, :2] = 9
    assert [o.item() for o in channel_statistics(even)] == [0, 0]
    variance, difference = channel_statistics(loud)
    assert variance.item() == pytest.approx(64*.1*.9) and difference.item() == pytest.approx(8)


def test_table_and_picture(tmp_path):
    learn = hue_learner(tmp_path/'hues', 'proto')
    table = learn.feature_statistics()
    assert table.domain.tolist() == ['novel'] and table.n_images.tolist() == [4*12]
    assert (table[['variance', 'variance_std', 'quantile_difference', 'quantile_difference_std']] > 0).all(axis=None)
    named = learn.feature_statistics({'same': tmp_path/'hues'/'novel'})
    assert named.variance.item() == pytest.approx(table.variance.item())
    fig = plot_feature_statistics({'a': table, 'b': table})
    assert len(fig.axes) == 2 and [len(ax.patches) for ax in fig.axes] == [2, 2]
    plt.close(fig)


def test_nothing_to_show_is_named(tmp_path):
    learn = hue_learner(tmp_path/'hues', 'proto')
    learn.dls.domains.clear()
    with pytest.raises(ValueError, match=r'needs domains: .*with_domains'): learn.feature_statistics()
    with pytest.raises(ValueError, match='no tables'): plot_feature_statistics({})
