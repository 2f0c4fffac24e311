"Tables and figures of results"
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from fsc_fastai.learner.results import format_table, plot_results, save_figure

ROW = dict(domain='moon', way=4, shot=1, n_episodes=7, n_query=2, accuracy=0.5, ci95=0.0123, protocol='7×2')


def test_table_shows_percentages_and_chance():
    shown = format_table(pd.DataFrame([ROW]), raw_pixels=[0.3])
    assert '50.00 ± 1.23' in shown and '25' in shown and '30.00' in shown and 'raw pixels %' in shown


def test_saving_a_figure_leaves_others_open(tmp_path):
    mine, ours = plt.figure(), plt.figure()
    save_figure(tmp_path/'ours.png')
    assert plt.fignum_exists(mine.number) and not plt.fignum_exists(ours.number)
    plt.close(mine)


def test_figure_has_a_bar_for_each_table_and_domain(tmp_path):
    table = pd.DataFrame([ROW, ROW | dict(domain='mars', accuracy=0.6)])
    ax = plot_results({'ours': table, 'theirs': table})
    assert [round(bar.get_height()) for bar in ax.patches] == [50, 60, 50, 60]
    assert [o.get_text() for o in ax.get_xticklabels()] == ['moon', 'mars'] and ax.get_title() == '4-way 1-shot, 7×2'
    save_figure(tmp_path/'results.png')
    assert (tmp_path/'results.png').stat().st_size > 1000 and not plt.get_fignums()
    with pytest.raises(ValueError, match='no tables'): plot_results({})
