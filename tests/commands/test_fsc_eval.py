import pandas as pd
import pytest
from fastcore.script import CliError

from fsc_fastai.commands.fsc_eval import fsc_eval


def test_train_then_eval(trained, capsys):
    fsc_eval(trained/'learner.pkl', str(trained/'hues'/'novel'), str(trained/'hues'/'val'), n_episodes=5, n_way=3,
                 n_shot=2, n_query=4, csv=trained/'table.csv')
    shown = capsys.readouterr().out
    table = pd.read_csv(trained/'table.csv')
    assert table.domain.tolist() == ['novel', 'val'] and (table.n_episodes == 5).all()
    assert 'novel' in shown and 'chance' in shown and '33' in shown


@pytest.mark.parametrize('call, named', [
    (lambda root: fsc_eval(root/'learner.pkl', str(root/'gone'), n_episodes=2), 'gone'),
])
def test_what_the_user_can_mend_is_one_line(trained, call, named):
    with pytest.raises(CliError, match=named): call(trained)
