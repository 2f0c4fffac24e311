"What is published: the source archive, and the wheel that is built from it alone"
import os
import shutil
import subprocess
import sys
import tarfile
from configparser import ConfigParser
from pathlib import Path
from zipfile import ZipFile

import pytest

from fsc_fastai import __version__

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns('.*', 'build', 'dist', '*.egg-info', '__pycache__', 'demo_out')
SOURCES = {f.relative_to(ROOT).as_posix() for f in (ROOT/'fsc_fastai').rglob('*') if f.is_file() and f.suffix != '.pyc'}


def built(hook, source, out):
    "The file that a hook of setuptools makes of a source tree, in a process of its own, without a network"
    code = f'from setuptools import build_meta; build_meta.{hook}({str(out)!r})'
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    ran = subprocess.run([sys.executable, '-c', code], cwd=source, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return next(out.iterdir())


@pytest.fixture(scope='module')
def sdist(tmp_path_factory):
    "Names in the archive, and the folder that it unpacks to"
    folder = tmp_path_factory.mktemp('dist')
    shutil.copytree(ROOT, folder/'checkout', ignore=LEFT_OUT)
    (folder/'sdist').mkdir()
    with tarfile.open(built('build_sdist', folder/'checkout', folder/'sdist')) as archive:
        archive.extractall(folder/'unpacked')
        names = {o.name.split('/', 1)[1] for o in archive.getmembers() if o.isfile()}
    unpacked, = (folder/'unpacked').iterdir()
    return names, unpacked


def test_the_source_archive_holds_what_it_is_built_from_and_no_more(sdist):
    names, _ = sdist
    assert {o for o in names if o.startswith('fsc_fastai/')} == SOURCES
    assert {o for o in names if not o.startswith(('fsc_fastai/', 'fsc_fastai.egg-info/'))} == {
        'CHANGELOG.md', 'CITATION.cff', 'LICENSE', 'MANIFEST.in', 'PKG-INFO', 'README.md', 'pyproject.toml', 'settings.ini',
        'setup.cfg', 'setup.py'}


def test_the_wheel_holds_the_package_its_types_and_the_licence(sdist, tmp_path):
    info = f'fsc_fastai-{__version__}.dist-info/'
    with ZipFile(built('build_wheel', sdist[1], tmp_path)) as wheel:
        names = set(wheel.namelist())
        metadata, scripts = (wheel.read(info + o).decode() for o in ('METADATA', 'entry_points.txt'))
    assert 'fsc_fastai/py.typed' in SOURCES and {o for o in names if not o.startswith(info)} == SOURCES
    assert info + 'licenses/LICENSE' in names
    assert f'\nVersion: {__version__}\n' in metadata and 'Description-Content-Type: text/markdown' in metadata
    settings = ConfigParser(delimiters=['='])
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    tried = settings['DEFAULT']['tried_python'].split()
    assert tried and all(f'\nClassifier: Programming Language :: Python :: {o}\n' in metadata for o in tried)
    assert '\nRequires-Python: >=3.10\n' in metadata
    assert scripts.replace(' = ', '=').split()[1:] == sorted(settings['DEFAULT']['console_scripts'].split())
