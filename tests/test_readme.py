"The README's own code: a method in a few lines, the DataBlock way"
import re
from pathlib import Path

import pytest

from tests.learners import write_hues

README = (Path(__file__).parents[1]/'README.md').read_text()
SNIPPETS = re.findall(r'```python\n(.*?)```', README, re.S)


def snippet(word: str) -> str:
    "The one python block of the README that holds `word`"
    found, = (s for s in SNIPPETS if word in s)
    return found


@pytest.fixture
def names(tmp_path, monkeypatch) -> dict:
    "What `from fsc_fastai.all import *` brings, in a folder with a folder `birds` of class folders"
    write_hues(tmp_path/'hues', splits=(('base', 13),), n=9)
    (tmp_path/'hues'/'base').rename(tmp_path/'birds')
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec('from fsc_fastai.all import *', found)
    return found


def test_own_images_both_ways(names):
    code = snippet("splitter=ClassSplitter(0.2)").replace('size=84', 'size=20, n_query=3').replace('Resize(84)', 'Resize(20)')
    code = code.replace('n_way=5, n_shot=1)', 'n_way=2, n_shot=1, n_query=3)').replace('n_way=5', 'n_way=2')
    for line in code.replace('\n                ', ' ').strip().splitlines():
        exec(line, names)
        learn = names['fsc_learner'](names['dls'], 'conv4', 'proto')
        with learn.no_bar(): learn.fit(1)


def test_own_method(names):
    exec("dls = EpisodeDataLoaders.from_folder('birds', n_way=2, n_shot=1, n_query=3, n_episodes=3, size=20)", names)
    exec(snippet('class Cosine').replace("'resnet10'", "'conv4'"), names)
    learn = names['learn']
    with learn.no_bar(): learn.fit(1)
    assert learn.lrp_guided.losses
    learn.export('own.pkl')


def test_three_lines_are_the_published_ones():
    lines = [line for line in SNIPPETS[0].splitlines() if line and not line.startswith('from')]
    assert len(lines) == 3 and 'fine_tune' in lines[2]
