"One name for one thing: classes, domains and files"
import os
import unicodedata
import warnings

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from fsc_fastai.commands.fsc_eval import named_domains
from fsc_fastai.data.domains import Domain, prepare_domain
from fsc_fastai.data.image_files import image_files
from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.data.names import distinct, named_paths
from fsc_fastai.data.readers import ImageList, read_dataset, read_df, read_filelists, read_folder
from fsc_fastai.data.splitter import ClassSplitter
from fsc_fastai.explain.heatmaps import plot_heatmaps
from fsc_fastai.learner.channel_statistics import plot_feature_statistics
from fsc_fastai.learner.results import plot_results

from .test_readers import filelist, write_json
from .trees import write_class, write_splits, write_tree

NFC, NFD = (unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD'))


def test_folders_that_end_alike_are_told_apart(tmp_path, make_dls):
    for name in ('plants', 'cars'): write_tree(tmp_path/name/'novel', 3)
    folders = [tmp_path/'plants'/'novel', str(tmp_path/'cars'/'novel')]
    assert list(named_domains(folders)) == ['plants/novel', 'cars/novel']
    assert {k: len(dl.items) for k, dl in make_dls().as_domains(folders).items()} == {'plants/novel': 24, 'cars/novel': 24}


def test_the_working_folder_has_a_name(tmp_path, monkeypatch, make_dls):
    monkeypatch.chdir(write_tree(tmp_path/'birds', 3))
    assert list(named_domains(['.'])) == list(make_dls().as_domains('.')) == ['birds'] and list(named_paths(['/'])) == ['/']


def test_a_folder_given_twice_and_one_that_is_called_as_a_glyph_domain_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='birds and .*birds.* are one and the same'): named_paths(['birds', './birds'])
    monkeypatch.setattr('fsc_fastai.commands.fsc_eval.untar_glyph_domains', lambda: {'greek': tmp_path})
    with pytest.raises(ValueError, match='greek is a glyph domain and the folder .*mine/greek'):
        named_domains(['glyphs', 'mine/greek'])
    assert list(named_domains(['glyphs', 'mine/latin'])) == ['greek', 'latin']


def test_file_lists_of_a_prepared_domain_are_one_domain(tmp_path, make_dls, split_tree):
    other = write_splits(tmp_path/'cub')
    lists = {s: filelist(other, f'{s}.json', other/s) for s in ('base', 'val', 'novel')}
    dls = make_dls(split_tree).with_domains(lists)
    assert set(dls.domains) == {'novel', 'cub'} and {f.parent.parent for f in dls.domains['cub'].files} == {other/'novel'}
    assert {f.parent.parent for f in dls.test.files} == {split_tree/'novel'}, 'the own held-out classes are still there'


def test_a_domain_is_never_replaced_in_silence(make_dls, split_tree, tree):
    dls = make_dls(split_tree)
    with pytest.raises(ValueError, match="domain novel is there already: .*pop\\('novel'\\)"): dls.with_domains({'novel': tree})
    assert {f.parent.parent for f in dls.test.files} == {split_tree/'novel'}


def test_classes_of_one_name_keep_apart(tmp_path):
    lists = write_json(tmp_path/'base.json', label_names=['crane', 'tench', 'crane', 'hen'],
                       image_names=['a.png', 'b.png', 'c.png', 'd.png'], image_labels=[0, 1, 2, 3])
    assert read_filelists(lists).labels == ['crane (0)', 'tench', 'crane (2)', 'hen']

    class ImageNet(list):
        targets, classes = [0, 1, 2], [('crane',), ('tench', 'Tinca tinca'), ('crane',)]
    assert read_dataset(ImageNet('abc')).labels == ['crane (0)', 'tench, Tinca tinca', 'crane (2)']
    assert distinct([3, 'a', 'a']) == [3, 'a (1)', 'a (2)']


def test_two_spellings_of_one_name_are_one_class(tmp_path):
    assert NFC != NFD
    df = pd.DataFrame(dict(file=list('abc'), label=[NFC, NFD, 'tea']))
    assert read_df(df).labels == [NFC, NFC, 'tea']
    assert ImageList(['a', 'b'], [NFC, NFD], ['train', 'valid']).labels == [NFC] * 2
    with pytest.raises(ValueError, match=f'train and valid must not share classes, but do: {NFC}'):
        ImageList(['a', 'b'], [NFC, NFD], ['train', 'valid']).checked()
    assert ClassSplitter([NFD]).split_classes([NFC, 'tea']) == [['tea'], [NFC]]
    for i, name in enumerate((NFC, NFD)): write_class(tmp_path/'t'/name, i, 2)
    if len(list((tmp_path/'t').iterdir())) == 2:  # some file systems know one spelling only
        with pytest.raises(ValueError, match='two folders for the class'): read_folder(tmp_path/'t')


@pytest.mark.parametrize('one, other', [(NFC, NFD), ('1', 1)])
def test_two_names_that_read_alike_are_named_in_a_data_block(tmp_path, one, other):
    from fastai.data.core import Datasets
    from fastai.data.transforms import ItemGetter

    from fsc_fastai.data.block import EpisodeCategorize
    with pytest.raises(ValueError, match='two classes are called'):
        Datasets([(0, one), (0, other)], tfms=[[ItemGetter(0)], [ItemGetter(1), EpisodeCategorize]])


def test_path_parts_joined_to_one_name_are_named(tmp_path):
    for folder in ('images/a-b/c', 'images/a/b-c'): write_class(tmp_path/folder, 0, 2)
    with pytest.raises(ValueError, match="two folders for the class 'a-b-c'"): prepare_domain('cub', tmp_path, strict=False)


@pytest.mark.parametrize('link', [os.symlink, os.link])
def test_links_to_one_file_are_never_support_and_query(tmp_path, make_dls, link):
    tree = write_tree(tmp_path/'t', 8)
    link(tree/'c00'/'00.png', tree/'c00'/'zz.png')
    with pytest.raises(ValueError, match=r'1 files are in the set more than once.*00.png = .*zz.png \(2 times\)'): make_dls(tree)
    (tree/'c00'/'zz.png').rename(tree/'c01'/'zz.png')
    in_another_class = ClassSplitter(['c07', 'c06'])
    with pytest.raises(ValueError, match='more than once'): make_dls(tree, splitter=in_another_class)


def test_links_between_the_sets_are_told(tmp_path, make_dls):
    root = write_splits(tmp_path/'s')
    os.symlink(root/'base'/'c00'/'00.png', root/'val'/'c04'/'zz.png')
    with pytest.warns(UserWarning, match='1 files are in more than one set: .*00.png = .*zz.png'): make_dls(root)


def test_a_tree_of_links_to_other_places_is_read(tmp_path, make_dls):
    tree, links = write_tree(tmp_path/'t'), tmp_path/'links'
    links.mkdir()
    for folder in tree.iterdir(): os.symlink(folder, links/folder.name)
    os.symlink(links, links/'c00'/'back')  # no end of folders
    assert len(read_folder(links)) == 64 and len(make_dls(links).train.items) + len(make_dls(links).valid.items) == 64


def test_equal_bytes_are_told(tmp_path):
    tree = write_tree(tmp_path/'t', 2)
    (tree/'c01'/'copy.png').write_bytes((tree/'c00'/'00.png').read_bytes())
    with pytest.warns(UserWarning, match='2 images have the same bytes as another.*00.png = .*copy.png'):
        read_folder(tree).checked()
    (tree/'c01'/'copy.png').unlink()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        read_folder(tree).checked()


def test_which_files_count_does_not_depend_on_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr('mimetypes.types_map', {})
    write_class(tmp_path/'t'/'cat', 0, 1)
    for name in ('a.webp', 'b.jfif', 'c.JPG', 'd.heic', 'notes.txt', '.hidden', 'Makefile'): (tmp_path/'t'/'cat'/name).touch()
    for name in ('export.pkl', 'models/model.pth'):
        (tmp_path/'t'/name).parent.mkdir(exist_ok=True)
        (tmp_path/'t'/name).touch()
    with pytest.warns(UserWarning, match='left out 3 files in .*t that are no images by their ending: ') as told:
        assert [f.name for f in image_files(tmp_path/'t')] == ['00.png', 'a.webp', 'b.jfif', 'c.JPG']
    assert all(o in str(told[0].message) for o in ('1 .heic', '1 .txt', '1 without an ending')) and len(told) == 1


DOLLARS = ['$x^', 'a$b$c', r'$\frac', r'\$5$', '$']


def test_a_dollar_is_no_formula(make_dls, tmp_path):
    for i, name in enumerate(DOLLARS): write_class(tmp_path/'t'/name.replace('/', ''), i)
    dls = make_dls(tmp_path/'t', n_way=3, splitter=ClassSplitter(.4))
    dls.train.show_batch()
    plt.gcf().canvas.draw()
    x, R = torch.rand(1, 3, 4, 4), torch.rand(1, 5, 3, 4, 4)
    plot_heatmaps(x, R, torch.rand(1, 5), torch.rand(5, 3, 4, 4), torch.arange(5), classes=DOLLARS).canvas.draw()
    results = pd.DataFrame(dict(domain=DOLLARS, way=5, shot=1, accuracy=.5, ci95=.1, protocol='x'))
    ax = plot_results({'$1^': results, '$2^': results})
    ax.figure.canvas.draw()
    assert [o.get_text().replace(r'\$', '$') for o in ax.get_xticklabels()] == DOLLARS
    statistics = pd.DataFrame(dict(domain=DOLLARS, variance=1., variance_std=.1, quantile_difference=1.,
                                   quantile_difference_std=.1))
    plot_feature_statistics({'$1^': statistics, '$2^': statistics}).canvas.draw()


def test_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    write_tree(tmp_path/'t', 2)
    assert len(read_folder('~/t').checked()) == 16 == len(EpisodeDataLoaders.from_folder('~/t', n_way=1, n_shot=1, n_query=1,
                                                                                        device='cpu').train.items) * 2
    lists = filelist(tmp_path/'t', 'all.json', tmp_path/'t')
    lists.rename(tmp_path/'all.json')
    assert len(read_filelists('~/all.json', root='~/t').checked()) == 16
    assert len(read_df(pd.DataFrame([['t/c00/00.png', 'a']]), '~').checked()) == 1
    assert len(ImageList(['~/t/c00/00.png'], ['a']).checked()) == 1
    def read(root, domain):
        from fsc_fastai.data.domains import ClassFiles
        return [ClassFiles('a', sorted(root.glob('*.png')), 'base')]
    mine = Domain('mine', read, 'Put it there', n_classes=(1, 0, 0))
    assert prepare_domain(mine, '~/t/c00', '~/lists')['base'].parent == tmp_path/'lists'
