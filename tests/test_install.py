"`make` installs by uv what pip would have installed from the same places"
import runpy
from pathlib import Path

import pytest

install = runpy.run_path(str(Path(__file__).parents[1]/'.ci'/'install.py'))


def test_uv_is_told_pips_settings():
    "The command's own section is stronger than the global one, and the environment than both, as for pip"
    told = install['uv_settings']("""\
:env:.find-links='/wheels /more wheels'
:env:.timeout='180'
global.extra-index-url='\\nhttps://one.test/simple\\nhttps://two.test/simple'
global.find-links='/other'
global.index-url='https://all.test/simple?a=b'
install.index-url='https://install.test/simple'
""")
    assert told == {'UV_INDEX': 'https://one.test/simple https://two.test/simple', 'UV_FIND_LINKS': '/wheels,/more,wheels',
                    'UV_DEFAULT_INDEX': 'https://install.test/simple'}
    assert install['uv_settings']('') == {}


@pytest.mark.parametrize('fails, ran', [
    (None, ['pip install --quiet uv', 'pip config list', 'uv pip install']),
    ('uv', ['pip install --quiet uv', 'pip config list', 'uv pip install', 'pip install --quiet -e .']),
    ('pip install --quiet uv', ['pip install --quiet uv', 'pip install --quiet -e .'])])
def test_where_uv_cannot_be_had_pip_installs(fails, ran, monkeypatch):
    seen = []

    class Ran:
        stdout = ''

        def __init__(self, *command, **_):
            seen.append(' '.join(command))
            self.returncode = int(fails is not None and seen[-1].startswith(fails))
    monkeypatch.setitem(install['install'].__globals__, 'run', Ran)
    assert install['install']('-e', '.') == 0
    assert len(seen) == len(ran) and all(said.startswith(o) for said, o in zip(seen, ran, strict=True))
