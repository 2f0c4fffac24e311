"The memory that decoded images may take"
import errno
import gc
import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fsc_fastai.data.cache import GB, ImageCache
from tests.ranks import FORK, in_child, on_a_small_disk


def image(i: int) -> torch.Tensor: return torch.full((3, 4, 4), i % 256, dtype=torch.uint8)


def test_each_image_is_loaded_once_and_stays_itself():
    loaded, cache = [], ImageCache(6)

    def load(i):
        loaded.append(i)
        return image(i)
    cache.prepare(load)
    for idxs in ([4, 1, 4], [1, 5], [5, 4, 1]):
        assert cache.get(idxs, load)[:, 0, 0, 0].tolist() == idxs
    assert sorted(loaded) == [0, 1, 4, 5] and len(cache) == 3 and '3 of 6' in repr(cache)


def test_all_caches_and_ranks_share_a_budget_and_give_it_back(monkeypatch):
    gc.collect()
    monkeypatch.setattr(ImageCache, 'budget_gb', ImageCache.used/GB + 1000/GB)
    one, two = ImageCache(20), ImageCache(20)
    assert one.prepare(image)
    with pytest.warns(UserWarning, match='20 images of 3×4×4 need'): assert not two.prepare(image)
    assert ImageCache(20, limit_gb=.1).prepare(image), 'a limit of its own'
    del one
    gc.collect()
    assert ImageCache(20).prepare(image)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    with pytest.warns(UserWarning, match='need'): assert not ImageCache(15).prepare(image)


def test_only_bytes_are_kept():
    with pytest.warns(UserWarning, match='torch.float32 are not cached'):
        assert not ImageCache(3).prepare(lambda i: image(i).float())


def test_pickled_it_is_empty():
    cache = ImageCache(1000, limit_gb=.5)
    cache.prepare(image)
    cache.get(range(1000), image)
    assert len(pickle.dumps(cache)) < 200 and len(pickle.loads(pickle.dumps(cache))) == 0


def test_images_of_another_shape_are_named():
    cache = ImageCache(3)
    cache.prepare(image)
    with pytest.raises(ValueError, match=r'image 2 has the shape \(3, 5, 5\), the others \(3, 4, 4\)'):
        cache.get([2], lambda i: torch.zeros(3, 5, 5, dtype=torch.uint8))


def in_folder(folder, **kwargs): return ImageCache(9, folder=folder, **kwargs)


def test_file_is_built_once_and_found_again(tmp_path):
    loaded, first = [], in_folder(tmp_path/'new')

    def load(i):
        loaded.append(i)
        return image(i)
    assert first.prepare(load) and len(first) == 9 and str(tmp_path) in repr(first)
    loaded.clear()
    again = in_folder(tmp_path/'new')
    assert again.prepare(load) and again.get([4, 0, 4], load)[:, 0, 0, 0].tolist() == [4, 0, 4]
    assert len(loaded) <= 9, 'a few images, to recognise the file by'
    assert sorted(f.suffix for f in (tmp_path/'new').iterdir()) == ['.lock', '.npy']


def test_what_is_done_to_a_batch_does_not_reach_the_file(tmp_path):
    cache = in_folder(tmp_path)
    cache.prepare(image)
    cache.store.zero_()
    again = in_folder(tmp_path)
    assert again.prepare(image) and again.get([5], image).eq(5).all()


@pytest.mark.parametrize(('load', 'identity'), [(lambda i: image(i) + (i > 0), 'a'), (image, 'b')], ids=['pixels', 'identity'])
def test_other_images_or_transforms_have_another_file(tmp_path, load, identity):
    in_folder(tmp_path).prepare(image, lambda: 'a')
    other = in_folder(tmp_path)
    other.prepare(load, lambda: identity)
    assert len(list(tmp_path.glob('*.npy'))) == 2 and torch.equal(other.get([8], load)[0], load(8))


def build_and_die(folder):
    def load(i):
        if i == 7: os._exit(1)
        return image(i)
    in_folder(folder).build(load, progress=False)


def test_process_killed_half_way_leaves_no_file_and_no_lock(tmp_path):
    assert in_child(build_and_die, tmp_path) == 1 and {f.suffix for f in tmp_path.iterdir()} == {'.part', '.lock'}
    cache = in_folder(tmp_path)
    assert cache.prepare(image) and cache.get(range(9), image)[:, 0, 0, 0].tolist() == list(range(9))
    assert {f.suffix for f in tmp_path.iterdir()} == {'.npy', '.lock'}


def build_and_count(folder, number):
    def load(i):
        with (folder/f'loaded{number}').open('a') as f: f.write(f'{i}\n')
        return image(i)
    cache = in_folder(folder/'cache')
    cache.build(load, progress=False)
    assert cache.get(range(9), load)[:, 0, 0, 0].tolist() == list(range(9))


def test_two_processes_build_one_file(tmp_path):
    both = [FORK.Process(target=build_and_count, args=(tmp_path, n)) for n in range(2)]
    for p in both: p.start()
    for p in both: p.join()
    assert [p.exitcode for p in both] == [0, 0]
    few, more = sorted(len((tmp_path/f'loaded{n}').read_text().split()) for n in range(2))
    assert more - few == 9, 'both look at a few images, one decodes all'


@pytest.mark.parametrize('error, message', [(ValueError, 'image 6 has the shape'), (OSError, 'six cannot be read')])
def test_an_image_of_another_shape_or_a_broken_one_leaves_no_file(tmp_path, error, message):
    def load(i):
        if i == 6 and error is OSError: raise OSError(errno.EIO, 'six cannot be read')
        return image(i) if i != 6 else torch.zeros(3, 5, 5, dtype=torch.uint8)
    with pytest.raises(error, match=message): in_folder(tmp_path).prepare(load)
    assert not list(tmp_path.glob('*.npy')) and in_folder(tmp_path).prepare(image)


def test_a_full_disk_or_memory_falls_back_to_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr('fsc_fastai.data.cache.free_memory', lambda: 10)
    with pytest.warns(UserWarning, match=r'GB of memory that are free.*cache=folder'): assert not ImageCache(9).prepare(image)
    monkeypatch.setattr('shutil.disk_usage', lambda path: SimpleNamespace(free=10))
    with pytest.warns(UserWarning, match='GB that are free in .*decoded anew'): assert not in_folder(tmp_path).prepare(image)


def test_much_memory_is_told_before_it_is_taken(monkeypatch, caplog):
    monkeypatch.setattr(ImageCache, 'tell_gb', 0)
    ImageCache(9).prepare(image)
    assert '9 decoded images of 3×4×4 take up to 0.0 GB of memory' in caplog.text


def of(cache): return cache.get(range(9), image)[:, 0, 0, 0].tolist()


SPOILT = {
    'empty': lambda file: file.write_bytes(b''), 'foreign': lambda file: file.write_text('something else'),
    'npz': lambda file: np.savez(file.open('wb'), a=np.zeros(3)), 'cut': lambda file: file.write_bytes(file.read_bytes()[:-1]),
    'fewer': lambda file: np.save(file, np.zeros((8, 3, 4, 4), np.uint8)),
    'floats': lambda file: np.save(file, np.zeros((9, 3, 4, 4), np.float32)),
    'another order': lambda file: np.save(file, np.asfortranarray(np.zeros((9, 3, 4, 4), np.uint8))),
    'garbage': lambda file: file.write_bytes(b'\x93NUMPY\x01\x00' + bytes(range(200)))}


@pytest.mark.parametrize('spoil', SPOILT.values(), ids=SPOILT)
def test_a_broken_or_foreign_file_is_named_and_built_again(tmp_path, spoil):
    assert in_folder(tmp_path).prepare(image)
    file, = tmp_path.glob('*.npy')
    whole = file.read_bytes()
    spoil(file)
    with pytest.warns(UserWarning, match=f'{file.name} are not the decoded images .*built again'):
        cache = in_folder(tmp_path)
        assert cache.prepare(image) and of(cache) == list(range(9))
    assert file.read_bytes() == whole and {f.suffix for f in tmp_path.iterdir()} == {'.npy', '.lock'}


def test_a_folder_that_refuses_falls_back_to_decoding(tmp_path, monkeypatch):
    (tmp_path/'file').touch()
    with pytest.warns(UserWarning, match='file/in.* cannot be used .*Not a directory.*decoded anew'):
        assert not in_folder(tmp_path/'file'/'in').prepare(image)

    def read_only(*args): raise OSError(errno.EROFS, 'Read-only file system')
    monkeypatch.setattr('fsc_fastai.data.cache.FileLock', read_only)
    with pytest.warns(UserWarning, match='cannot be used .*Read-only file system'): assert not in_folder(tmp_path).prepare(image)


def test_a_whole_file_in_a_read_only_folder_is_used(tmp_path, monkeypatch):
    assert in_folder(tmp_path).prepare(image)
    monkeypatch.setattr('fsc_fastai.data.cache.FileLock', None)
    monkeypatch.setattr('pathlib.Path.mkdir', None)
    cache = in_folder(tmp_path)
    assert cache.prepare(image) and of(cache) == list(range(9))


def full_disk(folder):
    "What a process sees that may write no more than 3000 bytes to a file"
    on_a_small_disk(3000)
    def large(i): return torch.zeros(3, 40, 40, dtype=torch.uint8)
    with pytest.warns(UserWarning, match='cannot be used .*File too large'): assert not in_folder(folder).prepare(large)
    os._exit(7)


@pytest.mark.skipif(os.name != 'posix', reason='limits of file sizes')
def test_a_disk_that_fills_up_meanwhile_falls_back_to_decoding_and_leaves_nothing(tmp_path):
    assert in_child(full_disk, tmp_path) == 7 and {f.suffix for f in tmp_path.iterdir()} == {'.lock'}
