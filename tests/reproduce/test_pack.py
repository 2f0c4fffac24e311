"Packed images make the same episodes on another machine, of nearly the same pixels"
import tarfile
from dataclasses import replace

import pytest
import torch
from PIL import Image

from fsc_fastai.reproduce.cells import PRESETS, Cell
from fsc_fastai.reproduce.pack import pack_images
from fsc_fastai.reproduce.table import run_table
from fsc_fastai.reproduce.table_data import folder_data
from tests.learners import write_hues

TINY = PRESETS['tiny']
RECIPE = replace(TINY.recipes['RN'], size=20, epochs=1)
PRESET = replace(TINY, recipes={'RN': RECIPE}, test_val=True)


@pytest.fixture
def photos(tmp_path):
    "A seen domain with splits, one target with splits and one without"
    write_hues(tmp_path/'photos'/'mini_imagenet', (('base', 6), ('val', 5), ('novel', 5)))
    write_hues(tmp_path/'photos'/'cub', (('base', 5), ('val', 2), ('novel', 5)), seed=1)
    write_hues(tmp_path/'photos'/'aerial', (('', 6),), seed=2)
    (tmp_path/'photos'/'aerial'/'0').rename(tmp_path/'photos'/'aerial'/'50 % sea')
    return folder_data(tmp_path/'photos')


def unpacked(archive):
    with tarfile.open(archive) as tar: tar.extractall(archive.parent, filter='data')
    return folder_data(archive.with_suffix(''))


@pytest.mark.parametrize('learned_from', [False, True])
def test_episodes_are_those_of_the_originals(photos, tmp_path, learned_from):
    packed = unpacked(pack_images(photos, PRESET, tmp_path/'small.tgz', learned_from))
    assert packed.name == 'small' and set(packed.targets) == set(photos.targets)
    cell = Cell('RN', 1, 3)
    here, there = (data.loaders(cell, RECIPE) for data in (photos, packed))
    pairs = [(here.valid, there.valid), *((dl, there.domains[name]) for name, dl in here.domains.items())]
    if learned_from:
        base = [data.pseudo_unseen(dls, cell)['cub'] for data, dls in ((photos, here), (packed, there))]
        assert base[1].n_classes == 5
        pairs.append(tuple(base))
    for a, b in pairs:
        assert a.labels == b.labels
        x, y = (dl.one_batch()[2].as_subclass(torch.Tensor).flatten(1) for dl in (a, b))
        assert torch.cdist(x, y).argmin(1).tolist() == list(range(len(x))), 'each image is nearest to itself'
    with Image.open(next((tmp_path/'small'/'mini_imagenet'/'base').rglob('*.jpg'))) as image: assert image.size == (23, 23)


def test_a_packed_table_is_trained(photos, tmp_path):
    packed = unpacked(pack_images(photos, PRESET, tmp_path/'small.tgz'))
    text = run_table('table2', PRESET, packed, tmp_path/'out', 1, [1], 'fsc_reproduce table2').read_text()
    assert '| LRP-RN | 1 |' in text and (tmp_path/'out'/'small'/'tiny'/'cells'/'rn_1shot_seed0'/'result.json').exists()


def test_an_archive_of_another_kind_is_refused(photos, tmp_path):
    with pytest.raises(ValueError, match=r'small\.zip has to end in \.tgz'): pack_images(photos, PRESET, tmp_path/'small.zip')
