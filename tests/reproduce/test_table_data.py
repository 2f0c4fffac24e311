"Domains of one's own for a table: folders or file lists, and which classes of a target serve what"
import pytest

from fsc_fastai.data.domains import ClassFiles, Domain, prepare_domain
from fsc_fastai.reproduce.cells import PRESETS, Cell, Recipe
from fsc_fastai.reproduce.table_data import folder_data
from tests.learners import SIZE, write_hues

RECIPE = Recipe(size=SIZE, n_query=2, n_episodes=3)


def read_hues(root, domain):
    return [ClassFiles(d.name, sorted(d.iterdir()), d.parent.name) for d in sorted(root.glob('*/*'))]


@pytest.fixture(scope='module', params=['folders', 'file lists'])
def prepared(request, tmp_path_factory):
    "A seen domain and two targets, one of them with splits, as folders or as `prepare_domain` writes them"
    root = tmp_path_factory.mktemp('domains')
    splits = (('base', 6), ('val', 5), ('novel', 5))
    if request.param == 'folders':
        for name in ('mini_imagenet', 'birds'): write_hues(root/name, splits)
    else:
        for name in ('mini_imagenet', 'birds'):
            images = write_hues(root.parent/f'{root.name}-{name}', splits)
            prepare_domain(Domain(name, read_hues, layout='', n_classes=(6, 5, 5)), images, root/name)
    write_hues(root/'plants', (('', 6),))
    return root


def names(dl): return {str(dl.vocab[c])[:-1] for c in dl.labels}


def test_seen_novel_and_every_target_are_tested(prepared):
    data = folder_data(prepared)
    dls = data.loaders(Cell('RN', 1, 0), RECIPE)
    assert (data.seen, list(data.targets)) == ('mini_imagenet', ['birds', 'plants'])
    assert {k: names(dl) for k, dl in dls.domains.items()} == {'novel': {'novel'}, 'birds': {'novel'}, 'plants': {''}}
    assert names(dls.train) == {'base'} and names(dls.valid) == {'val'}
    assert (dls.train.n_way, dls.train.n_shot, dls.train.n_query, len(dls.train)) == (5, 1, 2, 3)


def test_pseudo_unseen_are_the_base_classes_of_the_other_targets(prepared):
    data = folder_data(prepared)
    for unseen, other, classes in (('plants', 'birds', 'base'), ('birds', 'plants', '')):
        cell = Cell('RN', 1, 0, ft='lft', unseen=unseen)
        loader, = data.pseudo_unseen(data.loaders(cell, RECIPE), cell).items()
        assert (loader[0], names(loader[1])) == (other, {classes})
        assert loader[1].n_shot == 1 and loader[1].n_query == 2


def test_pseudo_unseen_are_only_of_what_is_left_out_in_turn(prepared):
    data = folder_data(prepared, left_out=['birds', 'elsewhere'])
    assert data.left_out == ('birds',)
    cell = Cell('RN', 1, 0, ft='lft', unseen='plants')
    assert list(data.pseudo_unseen(data.loaders(cell, RECIPE), cell)) == ['birds']


def test_cells_share_the_decoded_images(prepared):
    data = folder_data(prepared)
    one, other = (data.loaders(Cell('RN', shot, seed), RECIPE) for shot, seed in ((1, 0), (5, 3)))
    assert one.train.cache is other.train.cache is not None and one.domains['birds'].cache is other.domains['birds'].cache
    assert one.train.seed == 0 and other.train.seed == 3 and other.domains['plants'].n_shot == 5


def test_the_published_schedules():
    paper = PRESETS['paper']
    assert (paper.test_episodes, paper.test_query) == (2000, 16)
    for base in ('RN', 'GNN'):
        r = paper.recipes[base]
        assert (r.arch, r.size, r.pretrain_epochs, r.pretrain_bs, r.pretrain_lr, r.epochs, r.n_episodes, r.n_query, r.lr) == (
            'resnet10', 224, 400, 16, 1e-3, 400, 100, 16, 1e-3)
    can = paper.recipes['CAN']
    assert (can.arch, can.size, can.pretrain_epochs, can.epochs, can.n_episodes, can.n_query) == ('resnet12', 84, 0, 90, 1200, 6)
    assert (can.n_acc, can.optimizer, can.lr) == (4, 'sgd', .1)
    assert can.lr_steps == ((60, .006), (70, .0012), (80, .00024))
