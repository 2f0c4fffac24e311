"A table that is killed goes on to the same numbers"
import os
import signal
from pathlib import Path

import pytest

from fsc_fastai.reproduce.cells import Preset, Recipe
from fsc_fastai.reproduce.table import run_table
from tests.ranks import files, in_child

SHORT = Recipe(size=28, pretrain_epochs=2, epochs=3, n_episodes=2, n_query=3)
CHOSEN = Recipe(size=28, pretrain_epochs=1, pretrain_bs=16, epochs=3, n_episodes=4, n_query=3, n_acc=2, optimizer='sgd', lr=.01,
                encoder_lr=.1, schedule='flat', lr_steps=((2, .001),), val_episodes=3)
PRESET = Preset('short', {'RN': SHORT, 'CAN': CHOSEN, 'GNN': SHORT}, test_episodes=3, test_query=4)


def run(glyphs, out): return run_table('table2', PRESET, glyphs, out, 1, [1], 'fsc_reproduce table2')


@pytest.fixture(scope='module')
def unbroken(glyphs, tmp_path_factory): return files(run(glyphs, tmp_path_factory.mktemp('unbroken')).parent)


def _killed(file, written, glyphs, out):
    "A run that dies at the first `file` that it writes: when that is `written`, or with half of it on the disk"
    replace = os.replace
    def deadly(part, target):
        if not Path(target).match(file): return replace(part, target)
        if written: replace(part, target)
        else: os.truncate(part, os.path.getsize(part) // 2)
        return os.kill(os.getpid(), signal.SIGKILL)
    os.replace = deadly
    run(glyphs, out)


KILLS = (('encoders/*.pt', True),                           # between two epochs of pre-training
         ('encoders/*.safetensors', True),                  # pre-trained, not trained
         ('cells/rn_*/training.pt', True),                  # between two epochs of training
         ('cells/lrp-rn_*/training.pt', False),             # while the state is being written
         ('cells/lrp-rn_*/model.safetensors', True),        # trained, not tested
         ('cells/can_*/training.pt', True),                 # with a best epoch, accumulated gradients, another optimizer
         ('cells/lrp-can_*/result.json', True))             # before the report


def test_killed_at_any_moment_it_ends_with_the_numbers_of_an_unbroken_run(glyphs, unbroken, tmp_path):
    folder = tmp_path/'glyphs'/'short'
    for file, written in KILLS:
        assert in_child(_killed, file, written, glyphs, tmp_path) == -signal.SIGKILL, f'the run ended without {file}'
        assert written or list(folder.glob('cells/lrp-rn_*/.training.pt.*.part')), 'half of the file is there'
    run(glyphs, tmp_path)
    assert files(folder) == unbroken


def test_a_folder_that_can_not_be_made_is_named(glyphs, tmp_path):
    (tmp_path/'file').write_text('in the way')
    with pytest.raises(OSError, match='file/glyphs/short.*choose a folder that can be written'): run(glyphs, tmp_path/'file')
