"`EpisodeDataLoaders` from every source, and its domains"
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fsc_fastai.data.episode_loader import EpisodicDL
from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.data.splitter import ClassSplitter

from .conftest import PLAIN, SMALL
from .trees import identity, write_class, write_tree

ONE_SHOT = dict(n_way=2, n_shot=1, n_query=2, val_n_way=1, device='cpu')


def class_names(dl): return {dl.vocab[c] for c in dl.labels}


def test_the_three_lines(tmp_path):
    dls = EpisodeDataLoaders.from_folder(write_tree(tmp_path/'t', 25, n=21), n_way=5, n_shot=5, device='cpu')
    b = dls.one_batch()
    assert b.support_x.shape == (25, 3, 84, 84) and b.query_x.shape == (80, 3, 84, 84)
    assert dls.valid.one_batch().query_x.shape == (80, 3, 84, 84) and dls.img_size == 84


def test_random_split_of_the_classes_is_disjoint_and_the_seed_decides(make_dls):
    splits = [class_names(make_dls(seed=s).valid) for s in (0, 1, 2)]
    assert len({tuple(sorted(s)) for s in splits}) > 1 and all(len(s) == 2 for s in splits)
    dls = make_dls()
    train, valid = class_names(dls.train), class_names(dls.valid)
    assert train.isdisjoint(valid) and train | valid == set(dls.vocab)


def test_folders_of_base_val_and_novel(make_dls, split_tree):
    dls = make_dls(split_tree)
    sets = [class_names(dl) for dl in (dls.train, dls.valid, dls.test)]
    assert sets == [{f'c{i:02}' for i in range(4*k, 4*k + 4)} for k in range(3)]
    assert list(dls.domains) == ['novel'] and dls.n_classes == 4 and dls.test.n_way == 2


def test_no_test_set_is_a_clear_error(make_dls):
    with pytest.raises(LookupError, match='no test set .*the domains are none'): make_dls().test  # noqa: B018


def test_splitter_of_ones_own(make_dls):
    dls = make_dls(splitter=ClassSplitter(['c01', 'c02'], ['c03', 'c04']))
    assert class_names(dls.valid) == {'c01', 'c02'} and class_names(dls.test) == {'c03', 'c04'}


def test_frame_and_csv(tree):
    df = pd.DataFrame([dict(filename=f'{f.parent.name}/{f.name}', label=f.parent.name) for f in sorted(tree.rglob('*.png'))])
    df.to_csv(tree/'all.csv', index=False)
    for dls in (EpisodeDataLoaders.from_df(df, tree, **SMALL, **PLAIN),
                EpisodeDataLoaders.from_csv(tree/'all.csv', **SMALL, **PLAIN)):
        assert len(dls.train.items) + len(dls.valid.items) == 64 and dls.one_batch().n_way == 3


def test_numbers_as_labels_stay_numbers(tree):
    df = pd.DataFrame([(f'{f.parent.name}/{f.name}', int(f.parent.name[1:])) for f in sorted(tree.rglob('*.png'))])
    dls = EpisodeDataLoaders.from_df(df, tree, **SMALL, **PLAIN)
    assert sorted(dls.vocab) == list(range(8))


def test_torchvision_style_dataset():
    class Squares(torch.utils.data.Dataset):
        targets, classes = [i % 5 for i in range(40)], list('abcde')

        def __len__(self): return 40
        def __getitem__(self, i): return Image.fromarray(np.full((9, 9), 40*(i % 5), np.uint8)), i % 5
    dls = EpisodeDataLoaders.from_dataset(Squares(), **ONE_SHOT, item_tfms=[], batch_tfms=[])
    b = dls.one_batch()
    assert [dls.vocab[c] for c in b.classes] == [Squares.classes[v // 40] for v in (b.support_x[:, 0, 0, 0] * 255).round().int()]
    with pytest.raises(OSError, match='image 3 of Broken cannot be read'):
        class Broken(Squares):
            def __getitem__(self, i): return (b'', 0) if i == 3 else super().__getitem__(i)
        list(EpisodeDataLoaders.from_dataset(Broken(), **ONE_SHOT, splitter=ClassSplitter(['a'])).train.images())


def test_default_transforms_show_the_middle_outside_training(tmp_path):
    for c in range(3): write_class(tmp_path/'t'/f'c{c}', c, size=(46, 30))
    for f in (tmp_path/'t').rglob('*.png'):
        im = np.zeros((46, 46, 3), np.uint8)
        im[3:43, 3:43] = 255
        Image.fromarray(im).save(f)
    dls = EpisodeDataLoaders.from_folder(tmp_path/'t', size=40, **ONE_SHOT)
    shown = dls.valid.decode(dls.valid.one_batch()).query_x
    assert shown.shape[-2:] == (40, 40) and (shown >= 254).all()
    assert dls.train.one_batch().query_x.shape[-2:] == (40, 40)
    (x, _), = dls.train.images()
    assert x.shape[-1] == 40 and torch.equal(x[0], x[1]), 'augmented'


def test_domains_from_folders_lists_and_loaders(make_dls, split_tree, tmp_path):
    other = write_tree(tmp_path/'other', 3, first=50)
    dls = make_dls().with_domains({'other': other, 'split': split_tree, 'dls': make_dls(split_tree), 'dl': make_dls().valid})
    sizes = {name: len(class_names(dl)) for name, dl in dls.domains.items()}
    assert sizes == {'other': 3, 'split': 4, 'dls': 4, 'dl': 2}
    assert class_names(dls.domains['split']) == class_names(dls.domains['dls']) == {f'c{i:02}' for i in range(8, 12)}
    assert class_names(dls.domains['other']) == {'c50', 'c51', 'c52'} and not set(dls.vocab) & {'c50'}
    b = dls.domains['other'].one_batch()
    assert identity(b.query_x)[:, 0].tolist() == [50 + c for c in np.repeat(b.classes, 3)]


def test_one_domain_is_named_by_its_folder_and_may_have_its_own_counts(make_dls, tmp_path):
    named = make_dls().as_domains(write_tree(tmp_path/'birds', 4), n_way=4, n_shot=3)
    assert list(named) == ['birds'] and isinstance(named['birds'], EpisodicDL)
    assert (named['birds'].one_batch().n_way, named['birds'].one_batch().n_shot) == (4, 3)


def test_domain_whose_classes_are_too_small_is_named(make_dls, tmp_path):
    with pytest.raises(ValueError, match=r"domain 'tiny': 2 classes .*'c00': 4, 'c01': 4"):
        make_dls().with_domains({'tiny': write_tree(tmp_path/'tiny', 2, n=4)})


def test_domains_move_with_the_loaders(make_dls, tmp_path):
    dls = make_dls().with_domains({'other': write_tree(tmp_path/'other', 3)})
    assert dls.to('meta').domains['other'].device == torch.device('meta')
    dls.cpu()
    assert dls.domains['other'].device == dls.train.device == torch.device('cpu')


@pytest.mark.parametrize('change, error, message', [
    (dict(n_way=7), ValueError, 'n_way=7, but the training set has 6 classes'),
    (dict(val_n_way=3), ValueError, 'n_way=3, but the held-out set has 2 classes'),
    (dict(n_query=7), ValueError, r"6 classes of the training set .* 2 \+ 7 = 9 images \('c0\d': 8"),
    (dict(n_shot=0), ValueError, 'n_shot=0: at least 1'),
    (dict(n_episodes=0), ValueError, 'n_episodes=0'),
    (dict(n_ways=3), TypeError, 'n_ways'),
])
def test_impossible_settings_are_an_error_at_once(make_dls, change, error, message):
    with pytest.raises(error, match=message): make_dls(**change)


def test_small_classes_can_be_left_out(make_dls, tree):
    write_class(tree/'small', 99, n=3)
    with pytest.raises(ValueError, match="'small': 3"): make_dls(splitter=ClassSplitter(['c00', 'c01']))
    with pytest.warns(UserWarning, match="left out 1 classes of the training set .*'small': 3"):
        dls = make_dls(splitter=ClassSplitter(['c00', 'c01']), drop_small=True)
    assert 'small' not in {dls.vocab[c] for b in dls.train for c in b.classes}


def test_broken_files_are_met_before_training(make_dls, tree):
    (tree/'c03'/'04.png').write_bytes(b'no image')
    with pytest.raises(OSError, match='1 of 64 images cannot be used:\n.*c03.04.png'): make_dls()
    with pytest.warns(UserWarning, match='left out'): dls = make_dls(verify='skip')
    assert len(dls.train.items) + len(dls.valid.items) == 63


def test_new_images_with_the_transforms_of_validation(make_dls, tree):
    dls = make_dls()
    one, = dls.test_images(tree/'c02'/'01.png')
    several, = dls.test_images([Image.open(tree/'c02'/'01.png'), np.full((12, 12, 3), 7, np.uint8)])
    assert identity(one[0]).tolist() == [[2, 1]] and identity(several[0]).tolist() == [[2, 1], [7, 7]]
