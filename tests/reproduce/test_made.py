"What a stored cell was made with: nothing stands for the model or the result of something else, and what is broken is named"
import re
from dataclasses import replace

import pytest
import torch

from fsc_fastai.callback.resume import ResumeFit
from fsc_fastai.reproduce import training as trains
from fsc_fastai.reproduce.cells import Cell, Preset, Recipe
from fsc_fastai.reproduce.run import run_cell
from fsc_fastai.reproduce.table_data import folder_data
from tests.learners import SIZE, write_hues

RECIPE = Recipe(size=SIZE, pretrain_epochs=1, epochs=1, n_episodes=2, n_query=2)
RN, LFT = Cell('RN', 1, 0), Cell('RN', 1, 0, ft='lft', unseen='plants')


@pytest.fixture
def root(tmp_path):
    for name in ('mini_imagenet', 'birds', 'insects'): write_hues(tmp_path/'data'/name, (('base', 6), ('val', 5), ('novel', 5)))
    write_hues(tmp_path/'data'/'plants', (('novel', 5), ('base', 5), ('val', 5)))
    return tmp_path


def run(root, cell=RN, targets=(), seen='mini_imagenet', **recipe):
    preset = Preset('few', dict.fromkeys(('RN', 'CAN'), replace(RECIPE, **recipe)), test_episodes=2, test_query=2)
    return run_cell(cell, preset, folder_data(root/'data', seen, targets), root/'out')


def stored(root, cell=RN): return root/'out'/'cells'/cell.key


@pytest.mark.parametrize(('other', 'named'), [
    (dict(seen='birds', targets=['plants']), "data.seen='mini_imagenet' (now 'birds')"),
    (dict(epochs=9), 'recipe.epochs=1 (now 9)')])
def test_a_result_and_a_model_of_other_data_or_settings_are_not_taken_for_these(root, other, named):
    run(root)
    with pytest.raises(ValueError, match=r'result\.json was made with other settings: data.files.insects='):
        run(root, targets=['birds', 'plants'])
    for kept in ('result.json', 'model.safetensors'):
        with pytest.raises(ValueError, match=rf'{kept} was made with other settings: .*{re.escape(named)}'): run(root, **other)
        (stored(root)/kept).unlink()


def test_images_that_changed_are_other_data(root):
    run(root)
    image = next((root/'data'/'birds'/'novel').glob('*/*.png'))
    with image.open('ab') as file: file.write(b'more')
    with pytest.raises(ValueError, match='data.files.birds='): run(root)
    image.unlink()
    with pytest.raises(ValueError, match='data.files.birds='): run(root)


def test_a_model_depends_on_the_targets_that_it_learns_from(root):
    for cell in (RN, LFT):
        run(root, cell)
        (stored(root, cell)/'result.json').unlink()
    run(root, targets=['birds', 'plants'])
    with pytest.raises(ValueError, match=r'lft.*model\.safetensors was made with other settings: data.files.insects='):
        run(root, LFT, targets=['birds', 'plants'])


def test_an_encoder_is_shared_only_by_recipes_that_agree_on_it(root, monkeypatch):
    trained = []
    monkeypatch.setattr(trains, 'classification_learner',
                        lambda *args, call=trains.classification_learner, **kwargs: trained.append(1) or call(*args, **kwargs))
    run(root)
    run(root, Cell('RN', 1, 0, lrp=True), epochs=2)
    assert len(trained) == 1
    for other in (dict(pretrain_epochs=2), dict(pretrain_bs=8), dict(pretrain_lr=.01), dict(seen='birds')):
        n = len(trained)
        run(root, Cell('CAN', 1, 0), **other)
        assert len(trained) == n + 1, other
        for file in stored(root, Cell('CAN', 1, 0)).iterdir(): file.unlink()


def test_a_training_of_other_settings_is_not_continued(root, monkeypatch):
    def cut_off(self): raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(ResumeFit, 'after_fit', cut_off, raising=False)
        with pytest.raises(KeyboardInterrupt): run(root, pretrain_epochs=0, epochs=2)
    assert (stored(root)/'training.pt').exists()
    with pytest.raises(ValueError, match=r'training\.pt was made with other settings: .*recipe.n_query=2 \(now 3\)'):
        run(root, pretrain_epochs=0, epochs=2, n_query=3)
    image = next((root/'data'/'mini_imagenet'/'base').glob('*/*.png'))
    with image.open('ab') as file: file.write(b'more')
    with pytest.raises(ValueError, match=r'training\.pt was made with other settings: .*data.files.mini_imagenet='):
        run(root, pretrain_epochs=0, epochs=2)


def test_what_a_kill_between_saving_and_clearing_left_is_cleared(root):
    run(root)
    encoder, = (root/'out'/'encoders').glob('*.safetensors')
    (stored(root)/'result.json').unlink()
    left = [stored(root)/'training.pt', encoder.with_suffix('.pt')]
    for file in left: file.write_bytes(b'of an epoch before the last')
    run(root)
    assert not any(file.exists() for file in left)


def _flip(content: bytes) -> bytes:
    at = len(content)*3 // 4
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1:]


BREAKS = {'empty': lambda content: b'', 'cut': lambda content: content[:len(content)//2],
          'garbage': lambda content: b'\xff\x00' * 500,
          'a bit flipped': _flip, 'other': lambda content: b'{"a": 1}'}


@pytest.mark.parametrize('how', BREAKS)
def test_a_broken_file_is_named_and_removed_it_is_computed_again(root, how):
    first = run(root)
    encoder, = (root/'out'/'encoders').glob('*.safetensors')
    for file, needed in ((stored(root)/'result.json', ()), (stored(root)/'model.safetensors', ['result.json']),
                         (encoder, ['result.json', 'model.safetensors'])):
        for name in needed: (stored(root)/name).unlink()
        file.write_bytes(BREAKS[how](file.read_bytes()))
        with pytest.raises(ValueError, match=rf'{file} is broken .*Remove it'): run(root)
        file.unlink()
        assert run(root) == first


def test_weights_know_their_types_and_shapes(tmp_path):
    from fsc_fastai.files import load_weights, save_weights
    module = torch.nn.BatchNorm2d(3).to(torch.bfloat16)
    save_weights(module, tmp_path/'weights', dict(sizes=(1, 2)))
    loaded = load_weights(tmp_path/'weights', dict(sizes=[1, 2]))
    assert all(torch.equal(v, loaded[k]) and v.dtype == loaded[k].dtype for k, v in module.state_dict().items())
