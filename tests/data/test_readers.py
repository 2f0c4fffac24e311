"Layouts on disk as lists of images"
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.transforms import Compose, Normalize, ToTensor

from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.data.readers import (
    ImageList,
    read_csvs,
    read_dataset,
    read_df,
    read_easyfsl,
    read_filelists,
    read_folder,
    read_images,
)

from .trees import write_splits, write_tree


def write_json(path, **content):
    path.write_text(json.dumps(content))
    return path


def filelist(root, fname, folder, relative=True):
    "The field's list of a folder of class folders"
    files = sorted(folder.rglob('*.png'))
    names = sorted({f.parent.name for f in files})
    return write_json(root/fname, label_names=names, image_names=[str(f.relative_to(root) if relative else f) for f in files],
                      image_labels=[names.index(f.parent.name) for f in files])


def table(images): return {(f.parent.name, f.name, label) for f, label in zip(images.files, images.labels, strict=True)}


def test_class_folders(tree):
    images = read_folder(tree)
    assert len(images) == 64 and not images.sets
    assert [f.parent.name for f in images.files] == images.labels


@pytest.mark.parametrize('names', [('base', 'val', 'novel'), ('train', 'valid', 'test'), ('train', 'val')])
def test_folders_of_class_folders(tmp_path, names):
    images = read_folder(write_splits(tmp_path/'s', names=names))
    assert [len(s) for s in images.splits()] == [32] * len(names) and images.labels[0] == 'c00'


def test_folders_without_images_say_so(tmp_path, tree):
    with pytest.raises(FileNotFoundError, match='no such folder: .*none'): read_folder(tmp_path/'none')
    (tmp_path/'empty'/'cat').mkdir(parents=True)
    (tmp_path/'empty'/'cat'/'notes.txt').touch()
    with pytest.raises(FileNotFoundError, match='no images in .*empty: it needs a folder'): read_folder(tmp_path/'empty')
    (tree/'c00'/'00.png').rename(tree/'loose.png')
    with pytest.raises(ValueError, match='1 images lie in .* itself, such as loose.png'): read_folder(tree)


def test_two_folders_of_one_name_are_not_one_class(tmp_path):
    write_tree(tmp_path/'t'/'birds', 2)
    write_tree(tmp_path/'t'/'beasts', 1)
    with pytest.raises(ValueError, match="two folders for the class 'c00': .*beasts.*birds"): read_folder(tmp_path/'t')


@pytest.mark.parametrize('relative', [True, False])
def test_file_lists_of_the_field(split_tree, relative):
    for s in ('base', 'val', 'novel'): filelist(split_tree, f'{s}.json', split_tree/s, relative)
    images, folder = read_filelists(split_tree), read_folder(split_tree)
    assert table(images) == table(folder) and images.sets == folder.sets
    assert table(read_images(split_tree)) == table(images)
    one = read_images(split_tree/'val.json')
    assert len(one) == 32 and not one.sets
    assert read_filelists({'train': split_tree/'base.json', 'test': split_tree/'novel.json'}).sets.count('test') == 32


def test_file_list_from_another_root(tmp_path, tree):
    (tmp_path/'lists').mkdir()
    file = filelist(tree, 'all.json', tree).rename(tmp_path/'lists'/'all.json')
    assert table(read_filelists(file, root=tree).checked()) == table(read_folder(tree))
    with pytest.raises(FileNotFoundError, match='64 of 64 images are missing: .*lists'): read_filelists(file).checked()


@pytest.mark.parametrize('content, message', [
    ('{"label_names": [', 'is not JSON'),
    ('[1, 2]', 'lacks the list label_names and image_names and image_labels'),
    ('{"label_names": ["a"], "image_names": "x", "image_labels": [0]}', 'lacks the list image_names'),
    ('{"label_names": ["a"], "image_names": ["x", "y"], "image_labels": [0]}', '2 image_names, but 1 image_labels'),
    ('{"label_names": ["a"], "image_names": ["x"], "image_labels": [1]}', 'image_labels has 1, which is no position'),
    ('{"label_names": ["a"], "image_names": ["x", 3], "image_labels": [0, 0]}', 'image_names has 3 for image 1'),
    ('{"label_names": ["a", "b"], "image_names": ["x"], "image_labels": [true]}', 'image_labels has True.* for image 0'),
])
def test_wrong_file_lists(tmp_path, content, message):
    (tmp_path/'base.json').write_text(content)
    with pytest.raises(ValueError, match=f'base.json.*{message}'): read_filelists(tmp_path/'base.json')


def test_csvs_of_ravi(tmp_path):
    images = write_tree(tmp_path/'all', 6)
    (tmp_path/'images').mkdir()
    for f in images.rglob('*.png'): f.rename(tmp_path/'images'/f'{f.parent.name}{f.name}')
    for k, s in enumerate(('train', 'val', 'test')):
        rows = [f'{f.name},n0{f.name[:3]}' for f in sorted((tmp_path/'images').glob(f'c0[{2*k}{2*k + 1}]*'))]
        (tmp_path/f'{s}.csv').write_text('\n'.join(['filename,label', *rows]))
    read = read_csvs(tmp_path).checked()
    assert [len(s) for s in read.splits()] == [16, 16, 16] and read.labels[0] == 'n0c00'
    assert read_images(tmp_path).files == read.files and len(read_images(tmp_path/'val.csv')) == 16


def test_easyfsl_specs(tmp_path, tree):
    names = [f'c{i:02}' for i in range(8)]
    specs = write_json(tmp_path/'specs.json', class_names=names, class_roots=[f'images/{n}' for n in names])
    assert table(read_easyfsl(specs)) == table(read_images(specs)) == table(read_folder(tree))
    write_json(specs, class_names=names, class_roots=['images/c00'])
    with pytest.raises(ValueError, match='8 class_names, but 1 class_roots'): read_easyfsl(specs)
    write_json(specs, class_names=['owl'], class_roots=['images/owl'])
    with pytest.raises(FileNotFoundError, match='no such class folder: .*owl'): read_easyfsl(specs)


def test_frame_with_sets(tree):
    df = pd.DataFrame(dict(file=['c00/00.png', 'c01/00.png', 'c02/00.png'], kind=['a', 'b', 'c'], set=['base', 'val', 'novel']))
    images = read_df(df, tree, set_col='set').checked()
    assert images.labels == ['a', 'b', 'c'] and images.splits() == [[0], [1], [2]]
    with pytest.raises(ValueError, match='no column sort; it has file, kind, set'): read_df(df, label_col='sort')
    with pytest.raises(ValueError, match="column kind has 'a'; known are base"): read_df(df, set_col='kind')


def test_datasets_with_and_without_targets():
    pairs = [(np.full((4, 4, 3), i, np.uint8), i % 3) for i in range(9)]

    class Targets(list):
        targets, classes = np.arange(9) % 3, ['a', 'b', 'c']

        def __getitem__(self, i): raise AssertionError('loads an image to learn its label')
    assert read_dataset(pairs).labels == [0, 1, 2] * 3 and read_dataset(Targets(pairs)).labels == ['a', 'b', 'c'] * 3


NORMALISED = type('Normalised', (list,), dict(transform=Compose([ToTensor(), Normalize([.5], [.5])]), targets=[0]))


@pytest.mark.parametrize('read, message', [
    (lambda folder: read_images(folder/'none'), 'no such file or folder: .*none'),
    (lambda folder: read_images(folder/'a.txt'), 'a.txt is neither a folder'), (lambda folder: read_images(3), 'from a int'),
    (lambda folder: read_filelists({'bass': folder}), 'no set bass: one of base'),
    (lambda folder: read_filelists(folder), 'has no base.json'),
    (lambda folder: ImageList(['a', 'b', 'c'], [0, 1]), '3 images, but 2 labels'),
    (lambda folder: ImageList(['a.txt'] * 2, ['c'] * 2, ['train', 'valid']).checked(), 'valid must not share classes, but do: c'),
    (lambda folder: read_dataset(NORMALISED([0])), 'Normalised normalises its images.*leave Normalize out')])
def test_what_is_no_list_of_images_is_named(tmp_path, read, message):
    (tmp_path/'a.txt').touch()
    with pytest.raises((OSError, TypeError, ValueError), match=message): read(tmp_path)


@pytest.mark.parametrize('call', [read_csvs, read_images], ids=lambda f: f.__name__)
def test_easyfsls_own_csv(tmp_path, tree, call):
    files = sorted(tree.rglob('*.png'))
    rows = [f'{f.parent.name},{f.name}' for f in files]
    (tmp_path/'train.csv').write_text('\n'.join(['class_name,image_name', *rows]))
    assert table(call(tmp_path/'train.csv', tree).checked()) == table(read_folder(tree))


def test_easyfsls_json_from_another_root(tmp_path, tree):
    (tmp_path/'specs').mkdir()
    specs = write_json(tmp_path/'specs'/'train.json', class_names=['a', 'b', 'a'], class_roots=['c00', 'c01', 'c02'])
    dls = EpisodeDataLoaders.from_filelist(specs, tree, n_way=1, n_shot=1, n_query=1, device='cpu')
    assert {*dls.train.vocab} == {'a (0)', 'b', 'a (2)'}
    assert read_images(tmp_path/'specs'/'train.json', root=tree).labels == ['a (0)'] * 8 + ['b'] * 8 + ['a (2)'] * 8


def test_csv_with_named_columns_and_sets(tmp_path):
    (tmp_path/'all.csv').write_text('id,path,what,part\n1,x.png,NA,base\n2,y.png,None,val\n3,z.png,007,novel')
    images = read_csvs(tmp_path/'all.csv', fn_col='path', label_col='what', set_col='part')
    assert images.labels == ['NA', 'None', '007'] and images.splits() == [[0], [1], [2]]
    assert images.files == [tmp_path/f'{o}.png' for o in 'xyz']


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_encodings_with_a_mark_are_read(tmp_path, encoding):
    (tmp_path/'a.csv').write_text('filename,label\nx.png,Grünfink', encoding=encoding)
    lists = json.dumps(dict(label_names=['Grünfink'], image_names=['x.png'], image_labels=[0]), ensure_ascii=False)
    (tmp_path/'a.json').write_text(lists, encoding=encoding)
    assert read_images(tmp_path/'a.csv').labels == read_images(tmp_path/'a.json').labels == ['Grünfink']


@pytest.mark.parametrize('suffix', ['csv', 'json'])
@pytest.mark.parametrize('encoding, name, line', [('latin-1', 'Grünfink', 3), ('utf-16-le', 'Grünfink', 3),
                                                  ('utf-16-le', 'Fink', 1)])
def test_other_encodings_are_refused_with_file_and_line(tmp_path, suffix, encoding, name, line):
    file = tmp_path/f'a.{suffix}'
    file.write_text(f'filename,label\ny.png,Fink\nx.png,{name}', encoding=encoding)
    with pytest.raises(ValueError, match=f'a.{suffix}, line {line}, is not text in UTF-8: save'): read_images(file)


@pytest.mark.parametrize('content, message', [
    ('filename,label\nx.png,a\ny.png,', 'row 2 .line 3 of a file.: nothing in the column label'),
    ('filename,label\nx.png,a\ny.png', 'row 2 .*: nothing in the column label'),
    ('filename,label\n,a', 'row 1 .*: nothing in the column filename'),
    ('name,label\nx.png,a', 'has no column filename; it has name, label'),
    ('', 'is no CSV: No columns'), ('filename,label\nx,a\n"y,b', 'is no CSV: .*'),
    ('filename,label\nx,a\ny,b,c', 'is no CSV: .*line 3'),
])
def test_wrong_csvs_are_named_with_their_row(tmp_path, content, message):
    (tmp_path/'a.csv').write_text(content)
    with pytest.raises(ValueError, match=f'a.csv.* {message}'): read_csvs(tmp_path/'a.csv')


def test_a_frame_without_a_label_names_the_row():
    for nothing in (None, np.nan, pd.NA, ''):
        with pytest.raises(ValueError, match='the frame, row 2 .*nothing in the column label'):
            read_df(pd.DataFrame(dict(file=['x', 'y'], label=pd.Series(['a', nothing], dtype=object))))


class HuggingFace:
    "As `datasets.Dataset`: dictionaries by number, columns by name, and features that name the classes"
    def __init__(self, **columns):
        self.columns = columns
        names = SimpleNamespace(names=['owl', 'wren', 'owl'])
        self.features = {k: names if 'label' in k else SimpleNamespace() for k in columns}

    def __len__(self): return len(next(iter(self.columns.values())))
    def __getitem__(self, i): return self.columns[i] if isinstance(i, str) else {k: v[i] for k, v in self.columns.items()}


def test_datasets_of_dictionaries():
    pictures = [np.full((4, 4, 3), i, np.uint8) for i in range(6)]
    for key in ('image', 'img'):
        images = read_images(HuggingFace(**{key: pictures, 'label': [0, 1, 2] * 2}))
        assert images.labels == ['owl (0)', 'wren', 'owl (2)'] * 2 and images.files[5].open() is pictures[5]
    assert read_dataset([{'image': o, 'label': 'a'} for o in pictures]).labels == ['a'] * 6
    with pytest.raises(ValueError, match='items of HuggingFace have pixels, label: call the image "image"'):
        read_dataset(HuggingFace(pixels=pictures, label=[0] * 6))
    with pytest.raises(TypeError, match='from a dict'): read_images({'train': HuggingFace(image=pictures, label=[0] * 6)})


def test_one_hot_labels():
    def dataset(targets): return type('Data', (list,), dict(targets=targets))([0] * len(targets))
    for one_hot in (np.eye(3), np.eye(3, dtype=int).tolist(), torch.eye(3), list(torch.eye(3))):
        assert read_dataset(dataset(one_hot)).labels == [0, 1, 2]
    assert read_dataset([(0, torch.eye(2)[1]), (0, torch.eye(2)[0])]).labels == [1, 0]
    assert read_dataset(dataset(np.array([[4], [7]]))).labels == [4, 7]
    with pytest.raises(ValueError, match=r'label 1 of Data is \[1.0, 1.0\]: an image needs one class'):
        read_dataset(dataset(np.array([[0., 1], [1, 1]])))
