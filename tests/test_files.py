"Files that are whole or not there, whoever writes them and whatever stops it"
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fsc_fastai.files import atomic_write, save_weights
from tests.ranks import in_child, on_a_small_disk


def names(folder): return sorted(p.name for p in folder.iterdir())


def test_the_file_is_there_when_the_block_ends(tmp_path):
    file = tmp_path/'new'/'result.json'
    with atomic_write(file) as part:
        part.write_text('new')
        assert not file.exists() and part.parent == file.parent
    assert file.read_text() == 'new' and names(file.parent) == ['result.json']


@pytest.mark.parametrize('error', [ValueError('of the block'), KeyboardInterrupt(), OSError('of an image'),
                                   FileNotFoundError(2, 'no such file', 'image.png'), RuntimeError('of the model')])
def test_an_error_in_the_block_comes_through_and_leaves_the_old_file(tmp_path, error):
    file = tmp_path/'result.json'
    file.write_text('old')
    with pytest.raises(type(error)) as raised, atomic_write(file) as part:
        part.write_text('half')
        raise error
    assert raised.value is error and file.read_text() == 'old' and names(tmp_path) == ['result.json']


WRITERS = {'text': lambda part: part.write_text('x' * 200_000), 'torch': lambda part: torch.save(torch.zeros(100_000), part)}


@pytest.mark.parametrize('kind', [*WRITERS, 'weights'])
def test_a_full_disk_is_named(tmp_path, kind):
    file = tmp_path/'state'
    file.write_text('old')

    def write():
        on_a_small_disk(100_000)
        with pytest.raises(OSError, match=f'{file} cannot be written .*untouched: make room'):
            if kind == 'weights': save_weights(nn.Linear(300, 300), file, {})
            else:
                with atomic_write(file) as part: WRITERS[kind](part)

    assert in_child(write) == 0 and file.read_text() == 'old' and names(tmp_path) == ['state']


def test_a_place_that_can_not_be_written_is_named(tmp_path):
    (tmp_path/'file').write_text('in the way')
    with pytest.raises(OSError, match='file/x cannot be written .*choose a folder'), atomic_write(tmp_path/'file'/'x'): pass
    (tmp_path/'folder'/'full').mkdir(parents=True)
    with pytest.raises(OSError, match='folder cannot be written'), atomic_write(tmp_path/'folder') as part: part.mkdir()
    assert names(tmp_path) == ['file', 'folder'] and names(tmp_path/'folder') == ['full']


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    file, folder = tmp_path/'state', tmp_path/'images'

    def killed():
        with atomic_write(file) as part, atomic_write(folder) as parts:
            part.write_text('half')
            parts.mkdir()
            (parts/'image').write_text('half')
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed) == -signal.SIGKILL and len(names(tmp_path)) == 2
    with atomic_write(file) as first:
        first.write_text('first')
        with atomic_write(file) as second: second.write_text('second')
        assert file.read_text() == 'second' and first.exists()
    with atomic_write(folder) as parts: parts.mkdir()
    assert file.read_text() == 'first' and names(tmp_path) == ['images', 'state']


def test_many_may_write_the_same_file_at_once(tmp_path):
    file = tmp_path/'state'
    file.write_text('x' * 1000)
    def write(i):
        with atomic_write(file) as part:
            part.write_text(str(i) * 1000)
            return len(seen := file.read_text()) == 1000 and len(set(seen)) == 1
    with ThreadPoolExecutor(8) as pool: whole = list(pool.map(write, range(8)))
    assert all(whole) and file.read_text()[:1] in '01234567' and len(set(file.read_text())) == 1 and names(tmp_path) == ['state']


def test_a_link_is_written_through(tmp_path):
    (tmp_path/'disk').mkdir()
    (tmp_path/'disk'/'state').write_text('old')
    (tmp_path/'state').symlink_to(tmp_path/'disk'/'state')
    with atomic_write(tmp_path/'state') as part: part.write_text('new')
    assert (tmp_path/'state').is_symlink() and (tmp_path/'disk'/'state').read_text() == 'new'
    assert names(tmp_path/'disk') == ['state']


def test_it_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    calls, real = [], dict(fsync=os.fsync, replace=os.replace)
    for name in real: monkeypatch.setattr(os, name, lambda *args, name=name: calls.append(name) or real[name](*args))
    with atomic_write(tmp_path/'state') as part: part.write_text('new')
    assert calls == ['fsync', 'replace', 'fsync']
