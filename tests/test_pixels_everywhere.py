"An image means the same in training, in evaluation, to `predict` and to a deployed classifier"
import numpy as np
import pytest
from fastai.data.block import DataBlock
from fastai.data.transforms import get_image_files, parent_label
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock
from PIL import Image

from fsc_fastai.data.block import EpisodeBlock
from fsc_fastai.data.images import open_image
from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.data.splitter import ClassSplitter
from fsc_fastai.deploy.preprocess import Preprocess

EPISODES = dict(n_way=2, n_shot=1, n_query=1)
PLAIN = dict(item_tfms=[Resize(8, method='squish')], batch_tfms=[], device='cpu')


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    "Four classes of lying pictures, each the same noise, whose EXIF orientation says how they stand"
    root, exif = tmp_path_factory.mktemp('turned'), Image.Exif()
    exif[0x112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for i in range(12):
        (root/f'c{i // 3}').mkdir(exist_ok=True)
        Image.fromarray(noise ^ i).save(root/f'c{i // 3}'/f'{i}.png', exif=exif)
    return root


def deep_tree(root):
    for i in range(12):
        (root/f'c{i // 3}').mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 300*i + 100, np.uint16)).save(root/f'c{i // 3}'/f'{i}.png')
    return root


def everywhere(dls, tree):
    "What each way of the library sees of the first file"
    file = sorted(tree.rglob('*.png'))[0]
    for dl in (dls.train, dls.valid, dls.as_domains({'again': tree})['again']):
        if file in [item[0] if isinstance(item, tuple) else item for item in dl.items]:
            yield next(o for item, o in zip(dl.items, dl.images().one_batch()[0], strict=True)
                       if file in (item, item[0] if isinstance(item, tuple) else item))
    yield dls.test_images([file]).one_batch()[0][0]
    opened = Image.open(file)
    opened.load()
    preprocess = Preprocess.from_dls(dls)
    for source in (file, str(file), file.read_bytes(), opened): yield preprocess([source])[0]


def same_everywhere(dls, tree, orient=True, white=None) -> bool:
    seen = [np.rint(255 * o.numpy().transpose(1, 2, 0)) for o in everywhere(dls, tree)]
    wanted = np.asarray(open_image(sorted(tree.rglob('*.png'))[0], orient, white))
    return len(seen) == 7 and all((o == wanted).all() for o in seen)


def by_block(tree):
    block = DataBlock(blocks=(ImageBlock, EpisodeBlock(**EPISODES)), get_items=get_image_files, get_y=parent_label,
                      splitter=ClassSplitter(['c0', 'c1']), item_tfms=PLAIN['item_tfms'])
    return EpisodeDataLoaders.from_dls(block.dataloaders(tree, device='cpu'))


def by_folder(tree): return EpisodeDataLoaders.from_folder(tree, splitter=ClassSplitter(.5), **EPISODES, **PLAIN)


@pytest.mark.parametrize('make', [by_folder, by_block])
def test_orientation_is_the_same_everywhere(tree, make): assert same_everywhere(make(tree), tree)


def test_orientation_is_ignored_everywhere_where_it_shall_be(tree):
    dls = EpisodeDataLoaders.from_folder(tree, splitter=ClassSplitter(.5), orient=False, **EPISODES, **PLAIN)
    assert same_everywhere(dls, tree, orient=False)


def test_twelve_bits_are_the_same_everywhere(tmp_path):
    tree = deep_tree(tmp_path)
    with pytest.raises(OSError, match='12 of 12 images cannot be used:\n.*white=4095'): EpisodeDataLoaders.from_folder(tree)
    dls = EpisodeDataLoaders.from_folder(tree, splitter=ClassSplitter(.5), white=4095, **EPISODES, **PLAIN)
    assert same_everywhere(dls, tree, white=4095)
