"Readers and splits of the real domains, on small trees in exactly their layouts"
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import fastai.data
import numpy as np
import pytest
from fastai.data.external import URLs, fastai_path
from fastcore.xtras import untar_dir
from fastdownload import checks_module, read_checks
from scipy.io import savemat
from torchvision.datasets.utils import extract_archive

from fsc_fastai.data import fwt
from fsc_fastai.data.bscd import BSCD
from fsc_fastai.data.domain_files import SPLITS, split_of
from fsc_fastai.data.domains import DOMAINS, available_domains, domain_items, prepare_domain
from fsc_fastai.data.readers import read_filelists


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names: (folder/name).touch()


def numbered(n: int, form: str = '{:08}.jpg') -> list[str]: return [form.format(k + 1) for k in range(n)]


def listed(lists: dict[str, Path]) -> dict[str, dict[str, list[str]]]:
    "File names by class and split, read back as a user of the lists does"
    found: dict[str, dict[str, list[str]]] = {}
    for split, file in lists.items():
        items = read_filelists(file)
        for f, label in zip(items.files, items.labels, strict=True):
            assert f.is_file()
            found.setdefault(split, {}).setdefault(label, []).append(f.name)
    return found


@pytest.fixture
def cub(tmp_path):
    for i in range(8): touch(tmp_path/'CUB_200_2011'/'images'/f'{i + 1:03}.Bird_{i}', *numbered(i + 1, f'Bird_{i}_{{:04}}_1.jpg'))
    touch(tmp_path/'CUB_200_2011'/'parts', 'parts.txt')
    return tmp_path


@pytest.mark.parametrize('root', ['.', 'CUB_200_2011'])
def test_cub_gives_every_second_class_to_base_and_the_others_to_val_and_novel_in_turn(cub, root):
    found = listed(prepare_domain('cub', cub/root, strict=False))
    numbers = {split: [int(name[:3]) - 1 for name in classes] for split, classes in found.items()}
    assert numbers == dict(base=[0, 2, 4, 6], val=[1, 5], novel=[3, 7])
    assert found['novel']['004.Bird_3'] == numbered(4, 'Bird_3_{:04}_1.jpg')


def test_labels_count_the_classes_of_all_splits(cub):
    content = json.loads(prepare_domain('cub', cub, strict=False)['val'].read_text())
    assert len(content['label_names']) == 8 and sorted(set(content['image_labels'])) == [1, 5]


def test_items_of_a_split_are_those_of_its_list(cub):
    files, labels = domain_items('cub', cub, 'novel', strict=False)
    items = read_filelists(prepare_domain('cub', cub, strict=False)['novel'])
    assert (files, labels) == (items.files, items.labels)


def cars_tree(root: Path, devkit: str = 'devkit') -> None:
    classes = [3, 1, 2, 4, 1, 3]
    touch(root/'cars_train', *numbered(6, '{:05}.jpg'))
    touch(root/'cars_test', *numbered(6, '{:05}.jpg'))
    fields = [('bbox_x1', 'O'), ('class', 'O'), ('fname', 'O')]
    annotations = np.array([[(1, c, f) for c, f in zip(classes, numbered(6, '{:05}.jpg'), strict=True)]], dtype=fields)
    (root/devkit).mkdir(parents=True)
    savemat(root/devkit/'cars_train_annos.mat', dict(annotations=annotations))
    savemat(root/devkit/'cars_meta.mat', dict(class_names=np.array([['Acura', 'BMW', 'Ram C/V', 'Volvo']], dtype=object)))


@pytest.mark.parametrize('home, devkit', [('.', 'devkit'), ('stanford_cars', 'devkit'), ('.', 'car_devkit/devkit')])
def test_cars_are_the_training_images_by_their_number_in_the_devkit(tmp_path, home, devkit):
    cars_tree(tmp_path/home, devkit)
    assert listed(prepare_domain('cars', tmp_path, strict=False)) == dict(
        base={'Acura': ['00002.jpg', '00005.jpg'], 'Ram C/V': ['00001.jpg', '00006.jpg']},
        val={'BMW': ['00003.jpg']}, novel={'Volvo': ['00004.jpg']})


def test_a_car_that_the_devkit_names_but_is_not_there_is_named(tmp_path):
    cars_tree(tmp_path)
    (tmp_path/'cars_train'/'00003.jpg').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of the 6 images .* missing.*00003\.jpg'):
        prepare_domain('cars', tmp_path, strict=False)


def test_places_takes_the_first_files_of_each_class_in_both_layouts(tmp_path):
    small = replace(DOMAINS['places'], max_images=3, per_class=3, n_images=12, n_classes=(2, 1, 1))
    for name in ('abbey', 'apartment_building/outdoor', 'bar', 'zen_garden'):
        touch(tmp_path/'torchvision'/'data_256_standard'/name[0]/name, *reversed(numbered(5)))
        touch(tmp_path/'flat'/'places365_standard'/'train'/name.replace('/', '-'), *numbered(5))
    touch(tmp_path/'flat'/'places365_standard'/'val'/'abbey', *numbered(5))
    lists = [listed(prepare_domain(small, tmp_path/layout)) for layout in ('torchvision', 'flat')]
    assert lists[0] == lists[1] == dict(
        base={'abbey': numbered(3), 'bar': numbered(3)},
        val={'apartment_building-outdoor': numbered(3)}, novel={'zen_garden': numbered(3)})


@pytest.mark.parametrize('home', ['train_val2018', '2018'])
def test_plantae_takes_the_largest_species_from_few_to_many_images_and_equal_ones_by_name(tmp_path, home):
    sizes = {'5221': 2, '5222': 6, '5223': 3, '5224': 3, '5225': 3, '5226': 9}
    for species, n in sizes.items(): touch(tmp_path/home/'Plantae'/species, *numbered(n))
    touch(tmp_path/home/'Aves'/'3100', *numbered(20))
    few = replace(DOMAINS['plantae'], max_classes=4, max_images=5, n_classes=(2, 1, 1))
    found = listed(prepare_domain(few, tmp_path))
    assert {split: {c: len(f) for c, f in classes.items()} for split, classes in found.items()} == dict(
        base={'5224': 3, '5222': 5}, val={'5225': 3}, novel={'5226': 5})


def ravi_csvs(root: Path, classes: dict[str, str], numbers: list[int]) -> None:
    for stem, label in classes.items():
        rows = [f'{label}{n:08}.jpg,{label}' for n in numbers]
        (root/f'{stem}.csv').write_text('\n'.join(['filename,label', *rows]))


SYNSETS = dict(train='n01532829', val='n01855672', test='n01930112')
BY_SPLIT = dict(zip(('base', 'val', 'novel'), SYNSETS.values(), strict=True))


def test_mini_imagenet_from_ravis_files_in_one_folder(tmp_path):
    ravi_csvs(tmp_path, SYNSETS, [1, 5])
    for label in SYNSETS.values(): touch(tmp_path/'images', *numbered(9, label + '{:08}.jpg'))
    assert listed(prepare_domain('mini_imagenet', tmp_path, strict=False)) == {
        split: {label: [f'{label}00000001.jpg', f'{label}00000005.jpg']} for split, label in BY_SPLIT.items()}


def test_mini_imagenet_from_imagenet_counts_the_files_by_their_numbers(tmp_path):
    ravi_csvs(tmp_path, SYNSETS, [3, 1])
    for label in SYNSETS.values(): touch(tmp_path/'train'/label, *(f'{label}_{n}.JPEG' for n in (1000, 7, 23, 5)))
    assert listed(prepare_domain('mini_imagenet', tmp_path, strict=False)) == {
        split: {label: [f'{label}_23.JPEG', f'{label}_5.JPEG']} for split, label in BY_SPLIT.items()}


def test_mini_imagenet_from_folders_by_split(tmp_path):
    for stem, label in SYNSETS.items(): touch(tmp_path/'mini_imagenet_full_size'/stem/label, f'{label}_7.JPEG')
    assert listed(prepare_domain('mini_imagenet', tmp_path, strict=False)) == {
        split: {label: [f'{label}_7.JPEG']} for split, label in BY_SPLIT.items()}


def test_a_csv_without_the_columns_is_named(tmp_path):
    (tmp_path/'train.csv').write_text('file;class\na.jpg;b\n')
    with pytest.raises(ValueError, match=r'train\.csv must have the columns filename,label; it has file;class'):
        prepare_domain('mini_imagenet', tmp_path)


def test_imagenet_with_too_few_images_is_named(tmp_path):
    ravi_csvs(tmp_path, SYNSETS, [3])
    touch(tmp_path/'n01532829', 'n01532829_7.JPEG')
    with pytest.raises(FileNotFoundError, match=r'n01532829 has 1 images.*number 3'): prepare_domain('mini_imagenet', tmp_path)


def test_incomplete_data_raise_with_every_count_and_write_nothing(cub):
    with pytest.raises(ValueError, match='4 base classes found, 100 wanted.*36 images found, 11788 wanted.*strict=False'):
        prepare_domain('cub', cub, cub/'lists')
    assert not (cub/'lists').exists()


def test_a_class_of_another_size_is_named(tmp_path):
    for name in 'abc': touch(tmp_path/'train'/name, *numbered(1 if name == 'b' else 2))
    domain = replace(DOMAINS['places'], n_images=None, per_class=2, n_classes=(2, 1, 0))
    with pytest.raises(ValueError, match=r'2 images a class wanted, but b \(1\)'): prepare_domain(domain, tmp_path)


@pytest.mark.parametrize('name', available_domains())
def test_a_missing_domain_says_what_to_put_where_or_offers_the_download(tmp_path, name):
    with pytest.raises(FileNotFoundError, match='(Put|Unpack) .* there') as e: prepare_domain(name, tmp_path)
    assert str(tmp_path) in str(e.value) and ('download=True' in str(e.value)) == (DOMAINS[name].download is not None)


@pytest.mark.parametrize('name', available_domains())
def test_the_counts_wanted_follow_from_the_rule_of_the_splits(name):
    domain = DOMAINS[name]
    if name == 'mini_imagenet': assert sum(domain.n_classes) * domain.per_class == domain.n_images
    elif domain in BSCD: assert domain.n_classes[:2] == (0, 0)
    else:
        of = [split_of(i) for i in range(sum(domain.n_classes))]
        assert tuple(of.count(split) for split in SPLITS) == domain.n_classes


def test_a_folder_of_empty_class_folders_holds_no_images(tmp_path):
    touch(tmp_path/'images'/'001.Albatross', 'readme.txt', '.hidden.jpg')
    with pytest.raises(FileNotFoundError, match='cub: no images'): prepare_domain('cub', tmp_path, strict=False)


def test_download_fills_what_is_missing_and_leaves_fastais_data_folder_where_it_is(tmp_path, monkeypatch):
    def untar_data(url):
        touch(tmp_path/'CUB_200_2011'/'images'/'001.Albatross', 'a.jpg')
        return tmp_path/'CUB_200_2011'
    monkeypatch.setattr(fwt, 'untar_data', untar_data)
    before = fastai_path('data')
    files, labels = domain_items('cub', tmp_path/'nothing', 'base', download=True, strict=False)
    assert labels == ['001.Albatross'] and files[0].is_file() and fastai_path('data') == before


def test_a_failed_download_says_what_to_do_by_hand(tmp_path):
    def offline(root): raise OSError('no route to host')
    with pytest.raises(RuntimeError, match='cars: the download failed .*no route to host.*Unpack cars_train.tgz'):
        prepare_domain(replace(DOMAINS['cars'], download=offline), tmp_path, download=True)
    with pytest.raises(RuntimeError, match='mini_imagenet has no archive'):
        prepare_domain('mini_imagenet', tmp_path, download=True)


def test_a_split_that_there_is_not_is_named(tmp_path):
    with pytest.raises(ValueError, match="no split 'test'"): domain_items('cub', tmp_path, 'test')


def test_lists_are_replaced_whole(cub):
    first = prepare_domain('cub', cub, cub/'lists', strict=False)
    touch(cub/'CUB_200_2011'/'images'/'001.Bird_0', 'new.jpg')
    assert 'new.jpg' in listed(prepare_domain('cub', cub, cub/'lists', strict=False))['base']['001.Bird_0']
    assert sorted(first['base'].parent.iterdir()) == sorted(first.values())


def as_link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


ESCAPES = {
    'above': lambda out: tarfile.TarInfo('../out.jpg'),
    'absolute': lambda out: tarfile.TarInfo(str(out/'out.jpg')),
    'link': lambda out: as_link('images/a.jpg', tarfile.SYMTYPE, '../../out.jpg'),
}


@pytest.mark.parametrize('unpack', [untar_dir, shutil.unpack_archive, extract_archive], ids=['fastai', 'shutil', 'torchvision'])
@pytest.mark.parametrize('escape', ESCAPES)
def test_no_member_of_a_downloaded_archive_leaves_its_folder(tmp_path, unpack, escape):
    archive, root, before = tmp_path/'a.tar', tmp_path/'data'/'cub', vars(tarfile.TarFile).get('extraction_filter')
    touch(root.parent, 'secret.jpg')
    root.mkdir()
    with tarfile.open(archive, 'w') as tar:
        tar.addfile(ESCAPES[escape](tmp_path))

    def download(folder):
        unpack(str(archive), str(folder))
        return folder
    try: prepare_domain(replace(DOMAINS['cub'], download=download), root, download=True, strict=False)
    except (RuntimeError, FileNotFoundError) as e: assert escape == 'absolute' or 'the download failed' in str(e)
    assert not (tmp_path/'out.jpg').exists() and not (tmp_path/'data'/'out.jpg').exists()
    assert not (root/'images'/'a.jpg').is_symlink() and not (root/'images'/'a.jpg').exists()
    assert vars(tarfile.TarFile).get('extraction_filter') == before


def test_sizes_of_the_archives_that_fastai_fetches_are_known():
    checks = read_checks(checks_module(fastai.data))
    assert all(checks[url][0] > 1e9 for url in (URLs.CUB_200_2011, URLs.CARS))


def test_a_python_that_does_not_filter_archives_downloads_none(tmp_path, monkeypatch):
    monkeypatch.delattr('tarfile.data_filter')
    with pytest.raises(RuntimeError, match='cub: the download failed .*update it to 3.10.12'):
        prepare_domain('cub', tmp_path, download=True)
