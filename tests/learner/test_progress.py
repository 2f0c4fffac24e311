"A line an epoch where there is no bar"
import re

from fsc_fastai.learner.progress import plain_rows
from tests.learners import hue_loaders


def test_a_line_an_epoch_for_each_stage(tmp_path, capsys):
    from fsc_fastai.learner.core import fsc_learner
    learn = fsc_learner(hue_loaders(tmp_path/'hues'), 'conv4', 'proto', path=tmp_path)
    before = learn.logger
    with plain_rows(learn): learn.fine_tune(1, pretrain_epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ['0', '1', '0', '1']
    number = r'\d+\.\d{4}'
    assert re.fullmatch(rf'epoch 0  train_loss {number}  valid_loss {number}  accuracy {number}  time 00:\d\d', lines[0])
    assert f'accuracy {learn.recorder.values[-1][2]:.4f}  ci95' in lines[-1] and not any('[' in line for line in lines)
    assert learn.logger is before and hasattr(learn, 'progress')
