"Trees of small images, and loaders that leave the pixels as they are"
import pytest

from fsc_fastai.data.loaders import EpisodeDataLoaders

from .trees import write_splits, write_tree

SMALL = dict(n_way=3, n_shot=2, n_query=3, val_n_way=2, n_episodes=6)
PLAIN = dict(item_tfms=[], batch_tfms=[], device='cpu')


@pytest.fixture
def tree(tmp_path): return write_tree(tmp_path/'images')


@pytest.fixture
def split_tree(tmp_path): return write_splits(tmp_path/'split')


@pytest.fixture
def make_dls(tree):
    "Builds loaders of small episodes whose images keep their colours"
    def make(path=tree, **kwargs): return EpisodeDataLoaders.from_folder(path, **(SMALL | PLAIN | kwargs))
    return make
