"`--adapt` on the command line"
import pandas as pd

from fsc_fastai.commands.fsc_deploy import fsc_deploy
from fsc_fastai.commands.fsc_eval import fsc_eval
from fsc_fastai.deploy import FewShotClassifier
from tests.learners import hue_learner


def test_adaptations_are_rows_of_fsc_eval_and_what_fsc_deploy_makes(tmp_path):
    root = tmp_path/'hues'
    learn = hue_learner(root, 'proto')
    learn.export(tmp_path/'export.pkl')
    fsc_eval(str(tmp_path/'export.pkl'), str(root/'novel'), n_episodes=2, n_way=3, n_shot=2, n_query=2,
             adapt='none+pa:steps=2+pmf:lr=1e-3,steps=1', csv=tmp_path/'table.csv', device='cpu', resume=tmp_path/'kept.json')
    assert pd.read_csv(tmp_path/'table.csv', keep_default_na=False).adapt.tolist() == ['none', 'pa', 'pmf']
    assert (tmp_path/'kept.json').exists()
    fsc_deploy(str(tmp_path/'export.pkl'), root/'novel', out=tmp_path/'classifier', adapt='pa:steps=2')
    assert 'FeatureNet' in repr(FewShotClassifier.from_pretrained(tmp_path/'classifier'))
