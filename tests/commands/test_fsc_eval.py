import shutil

import pandas as pd
import pytest
from fastcore.script import CliError

from fsc_fastai.commands.fsc_deploy import fsc_deploy
from fsc_fastai.commands.fsc_eval import fsc_eval
from fsc_fastai.deploy import FewShotClassifier


def test_adaptations_are_rows_of_fsc_eval_and_what_fsc_deploy_makes(trained, tmp_path):
    fsc_eval(str(trained/'learner.pkl'), str(trained/'hues'/'novel'), n_episodes=2, n_way=3, n_shot=2, n_query=2,
             adapt='none+pa:steps=2+pmf:lr=1e-3,steps=1', csv=tmp_path/'table.csv', device='cpu', resume=tmp_path/'kept.json')
    assert pd.read_csv(tmp_path/'table.csv', keep_default_na=False).adapt.tolist() == ['none', 'pa', 'pmf']
    assert (tmp_path/'kept.json').exists()
    fsc_deploy(str(trained/'learner.pkl'), trained/'hues'/'novel', out=tmp_path/'classifier', adapt='pa:steps=2')
    assert 'FeatureNet' in repr(FewShotClassifier.from_pretrained(tmp_path/'classifier'))


def test_classes_of_too_few_images_are_named_or_left_out(trained, tmp_path, capsys):
    shutil.copytree(trained/'hues'/'novel', tmp_path/'domain')
    for file in sorted(next(o for o in sorted((tmp_path/'domain').iterdir()) if o.is_dir()).iterdir())[1:]: file.unlink()
    few = trained/'learner.pkl', str(tmp_path/'domain')
    drawn = dict(n_episodes=2, n_way=2, n_shot=1, n_query=1)
    with pytest.raises(CliError, match='--drop-small'): fsc_eval(*few, **drawn)
    with pytest.warns(UserWarning, match='left out'): fsc_eval(*few, drop_small=True, **drawn)
    assert 'domain' in capsys.readouterr().out
