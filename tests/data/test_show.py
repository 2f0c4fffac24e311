"Figures of episodes"
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb

from fsc_fastai.data.episode import RIGHT, WRONG


def colours(ax): return {tuple(p) for p in ax.images[0].get_array().reshape(-1, 3).round(4)}


def test_an_episode_has_a_row_for_each_class(make_dls):
    dls = make_dls()
    b = dls.train.episode(0)
    dls.train.show_batch(b)
    fig = plt.gcf()
    rows = [fig.axes[i:i + 2] for i in range(0, 6, 2)]
    assert [left.get_ylabel() for left, _ in rows] == [dls.vocab[c] for c in b.classes]
    for c, (left, right) in zip(b.classes, rows, strict=True):
        number = int(dls.vocab[c][1:])
        for ax in (left, right): assert {round(r * 255) for r, _, blue in colours(ax) if blue < .5} == {number}
    assert fig.get_size_inches()[0] <= 13


def test_images_look_as_they_did_before_normalization(tree, make_dls):
    dls = make_dls(batch_tfms=None, item_tfms=None, size=10)
    dls.valid.show_batch()
    reds = {round(r * 255) for ax in plt.gcf().axes for r, _, blue in colours(ax) if blue < .5}
    numbers = {int(dls.vocab[c][1:]) for c in dls.valid.labels}
    assert reds <= numbers | {n - 1 for n in numbers} and len(reds) == 2, "fastai's decoding rounds down"


def test_many_images_are_cut_to_max_n(make_dls):
    dls = make_dls(n_shot=1, n_query=7)
    dls.show_batch(max_n=2)
    left, right = plt.gcf().axes[:2]
    assert left.images[0].get_array().shape[1] * 2 < right.images[0].get_array().shape[1] + 5


def test_results_are_framed_right_or_wrong_and_wrong_ones_named(make_dls):
    dls = make_dls()
    b = dls.valid.one_batch()
    preds = b.query_y.clone()
    preds[0] = 1
    dls.valid.show_results(b, preds)
    first, second = plt.gcf().axes[1], plt.gcf().axes[3]
    right, wrong = (tuple(round(o, 4) for o in to_rgb(c)) for c in (RIGHT, WRONG))
    assert {right, wrong} <= colours(first) and right in colours(second) and wrong not in colours(second)
    assert [t.get_text() for t in first.get_xticklabels()] == [dls.vocab[b.classes[1]], '', '']
