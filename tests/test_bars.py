"Progress bars: with a time where they are watched, and nothing at all in a log"
import io
import re
import sys

import pytest

from fsc_fastai.bars import Bar
from tests.learners import hue_learner, write_hues


class Terminal(io.StringIO):
    def isatty(self): return True


@pytest.mark.parametrize('out', [Terminal(), io.StringIO()], ids=['terminal', 'log'])
def test_loops_share_a_bar(monkeypatch, out):
    monkeypatch.setattr(sys, 'stdout', out)
    bar = Bar(10, comment='first')
    assert [*bar.through('abc'), *bar.through('de', each=3, worth=5)] == [*'abcde'] and bar.done == 8
    bar.comment = 'second'
    assert [*bar.through([], worth=2)] == [] and bar.done == 10
    shown = out.getvalue()
    if not out.isatty(): assert not shown
    else: assert '... first]' in shown and re.search(r'\[10/10 \d\d:\d\d<00:00\.\.\. second\]', shown)


@pytest.mark.parametrize('out', [Terminal(), io.StringIO()], ids=['terminal', 'log'])
def test_evaluation_says_how_long_it_takes(monkeypatch, out, tmp_path):
    monkeypatch.setattr(sys, 'stdout', out)
    learn = hue_learner(write_hues(tmp_path/'hues', n=6), 'proto')
    small = dict(n_episodes=4, n_query=3)
    learn.evaluate(learn.dls.domains, **small)
    learn.confusion('novel', **small)
    assert not out.getvalue(), 'a learner without a progress bar shows none'
    learn.progress = True
    for adapt in (None, ['pa', 'finetune:steps=1']): learn.evaluate(adapt=adapt, **small)
    learn.confusion('novel', **small)
    shown = out.getvalue()
    if not out.isatty(): assert not shown
    else:
        n = len(learn.dls.domains['novel'].items)
        ends = {int(total) for done, total in re.findall(r'\[(\d+)/(\d+) \d\d:\d\d<00:00\.\.\. novel\]', shown) if done == total}
        assert ends == {n + 4, n + 8}, 'images are encoded once, episodes classified for each adaptation'
