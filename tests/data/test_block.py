"Episodes through fastai's DataBlock API"
import fastai.callback.progress  # noqa: F401, for no_bar
import numpy as np
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import ItemGetter, RandomSplitter, get_image_files, parent_label
from fastai.learner import Learner
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageBlock
from torch import nn

from fsc_fastai.data.block import EpisodeBlock
from fsc_fastai.data.episode import Episode
from fsc_fastai.data.episode_loader import EpisodicDL
from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.data.splitter import ClassSplitter
from fsc_fastai.methods import create_fsc_model

from .trees import write_tree

PAIR = [ItemGetter(0), ItemGetter(1)]


def block(episodes=None, **kwargs):
    episodes = episodes or EpisodeBlock(n_way=3, n_shot=2, n_query=3, val_n_way=2)
    settings = dict(get_items=get_image_files, get_y=parent_label, splitter=ClassSplitter(.25), item_tfms=Resize(16))
    return DataBlock(blocks=(ImageBlock, episodes), **(settings | kwargs))


def test_the_dblock_way(tree):
    dls = EpisodeDataLoaders.from_dblock(block(batch_tfms=aug_transforms()), tree, device='cpu')
    for b, way in ((dls.one_batch(), 3), (dls.valid.one_batch(), 2)):
        assert isinstance(b, Episode) and (b.n_way, b.n_shot, b.n_query) == (way, 2, 3)
        assert b.support_x.shape == (way*2, 3, 16, 16) and b.query_x.dtype is torch.float32


def test_plain_dataloaders_become_ours(tree):
    plain = block().dataloaders(tree, device='cpu')
    dls = EpisodeDataLoaders.from_dls(plain)
    assert dls.train is plain.train and dls.domains == {} and EpisodeDataLoaders.from_dls(dls) is dls


def test_augmentations_draw_for_each_image_alone():
    data = [(np.full((16, 16, 3), [i, c, 0], dtype=np.uint8), c) for c in range(6) for i in range(5)]
    flat = block(get_items=None, getters=PAIR, get_y=None, item_tfms=[],
                 splitter=ClassSplitter(.5, label_func=lambda o: o[1]), batch_tfms=aug_transforms(max_lighting=.9, p_lighting=1.))
    x = EpisodeDataLoaders.from_dblock(flat, data, device='cpu').one_batch().support_x
    assert x.shape == (6, 3, 16, 16) and len({round(float(v), 6) for v in x[:, 2].mean((1, 2))}) > 1


def test_block_on_two_domains_keeps_their_vocabularies_apart(tree, tmp_path):
    dblock = block()
    one = EpisodeDataLoaders.from_dblock(dblock, tree, device='cpu')
    two = EpisodeDataLoaders.from_dblock(dblock, write_tree(tmp_path/'other', 6, first=20), device='cpu')
    assert sorted(one.vocab) == [f'c{i:02}' for i in range(8)] and sorted(two.vocab) == [f'c{i:02}' for i in range(20, 26)]
    assert {one.vocab[c] for c in one.valid.labels} <= set(one.vocab)


def test_given_vocab_keeps_its_order_and_must_be_complete(tree):
    names = [f'c{i:02}' for i in reversed(range(8))]
    assert list(EpisodeDataLoaders.from_dblock(block(EpisodeBlock(3, 2, 3, vocab=names, val_n_way=2)), tree).vocab) == names
    with pytest.raises(ValueError, match='labels that the vocab lacks: c00'):
        EpisodeDataLoaders.from_dblock(block(EpisodeBlock(3, 2, 3, vocab=names[:-1])), tree)


@pytest.mark.parametrize('label', [.5, None, [1, 2], float('nan'), '', {'a': 1}])
def test_labels_that_are_no_categories(label):
    items = [(np.zeros((4, 4, 3), dtype=np.uint8), label if i == 7 else 'ab'[i % 2]) for i in range(8)]
    dblock = block(get_items=None, getters=PAIR, get_y=None, splitter=RandomSplitter(seed=0))
    with pytest.raises(TypeError, match='one category per image'): EpisodeDataLoaders.from_dblock(dblock, items)


def test_summary_runs(tree, capsys):
    block(batch_tfms=aug_transforms()).summary(tree, bs=2)
    assert 'EpisodeSplit' in capsys.readouterr().out


def test_split_by_images_warns_that_classes_are_shared(tree):
    with pytest.warns(UserWarning, match='share 8 classes .*ClassSplitter'):
        EpisodeDataLoaders.from_dblock(block(EpisodeBlock(3, 1, 1, val_n_way=1), splitter=RandomSplitter(.5, seed=1)), tree)


def test_block_without_episodes_is_refused(tree):
    with pytest.raises(TypeError, match='EpisodeBlock'):
        EpisodeDataLoaders.from_dblock(DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files), tree)


def test_a_learner_trains_validates_and_predicts_in_order(tree):
    episodes = EpisodeBlock(3, 2, 3, n_episodes=4, val_n_way=2, val_n_episodes=5)
    dls = EpisodeDataLoaders.from_dblock(block(episodes), tree, device='cpu')
    learn = Learner(dls, create_fsc_model('proto', nn.Conv2d(3, 4, 3), img_size=16), loss_func=nn.CrossEntropyLoss())
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-3)
        assert learn.validate() == learn.validate()
        preds, y = learn.get_preds(reorder=False)
    assert dls.train.epoch == 2 and isinstance(dls.valid, EpisodicDL)
    assert preds.shape == (5*2*3, 2) and y.tolist() == [0, 0, 0, 1, 1, 1] * 5
