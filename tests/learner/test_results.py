"Tables and figures of results"
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from fsc_fastai.learner.results import Accuracies, format_table, plot_results, save_figure

ROW = dict(domain='moon', way=4, shot=1, n_episodes=7, n_query=2, accuracy=0.5, ci95=0.0123, protocol='7×2')


def test_table_shows_percentages_and_chance():
    shown = format_table(pd.DataFrame([ROW]))
    assert '50.00 ± 1.23' in shown and '25' in shown


def test_a_frame_of_accuracies_is_shown_in_percent_and_holds_numbers():
    table = Accuracies([ROW, ROW | dict(domain='mars', accuracy=.6)])
    table.attrs['episodes'] = {'moon': [.5]}
    for shown in (repr(table), table._repr_html_(), repr(table.assign(chance=.2)[table.accuracy < .7]),
                  repr(pd.concat([table, table]))):
        assert '50.00 %' in shown and '±1.23 %' in shown and 'moon' in shown
    assert '+2.00 %' in repr(Accuracies([dict(difference=.02, ci95=.01)])) and 'moon' in repr(table[['domain']])
    assert table.accuracy.tolist() == [.5, .6] and table[table.accuracy > .5].attrs == table.attrs
    assert table.to_csv() == pd.DataFrame(table.to_dict('list')).to_csv() and table.drop(columns='accuracy').ci95.sum() == .0246
    assert repr(table.head(0)) and repr(table.T) and repr(Accuracies([ROW] * 100)).count('moon') < 100


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
