"An exported learner and a bundle answer in a process that knows nothing of their making (`test_light.py`: an ONNX export)"
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from fsc_fastai.deploy import FewShotClassifier
from tests.learners import hue_learner

SCRIPT = '''
import json, sys, warnings
warnings.filterwarnings('ignore')
folder, found = sys.argv[1], {}

from fastai.learner import load_learner
learn = load_learner(f'{folder}/learner.pkl')
found['export'] = learn.predict(f'{folder}/new.png')[2].tolist()
found['callbacks'] = [type(cb).__name__ for cb in learn.cbs]
found['images'] = len(learn.dls.train.dataset)
with learn.no_bar():
    table = learn.evaluate({'novel': f'{folder}/hues/novel'}, n_episodes=5, n_query=3, n_way=3, n_shot=2)
found['accuracies'] = table.attrs['episodes']['novel']

from fsc_fastai.deploy import FewShotClassifier
found['bundle'] = FewShotClassifier.from_pretrained(f'{folder}/bundle').predict_proba([f'{folder}/new.png'])[0].tolist()
print(json.dumps(found))
'''


@pytest.fixture(scope='module')
def answers(tmp_path_factory):
    "What this process answers, and what another one does"
    folder = tmp_path_factory.mktemp('artefacts')
    learn = hue_learner(folder/'hues')
    learn.fit(1)
    learn.set_support(folder/'hues'/'novel').export('learner.pkl')
    known = FewShotClassifier.from_learner(learn).fit(folder/'hues'/'novel')
    known.save(folder/'bundle')
    new = next((folder/'hues'/'novel'/'novel1').iterdir()).rename(folder/'new.png')
    ran = subprocess.run([sys.executable, '-c', SCRIPT, folder], capture_output=True, text=True, cwd=folder,
                         env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert ran.returncode == 0, ran.stderr
    table = learn.evaluate({'novel': folder/'hues'/'novel'}, n_episodes=5, n_query=3)
    return known.predict_proba([new])[0], json.loads(ran.stdout.strip().splitlines()[-1]), table.attrs['episodes']['novel']


@pytest.mark.parametrize('artefact', ['bundle', 'export'])
def test_the_answer_is_the_same(answers, artefact):
    here, there, _ = answers
    assert np.allclose(there[artefact], here, rtol=0, atol=1e-5)


def test_an_exported_learner_has_no_training_images_and_is_as_accurate(answers):
    _, there, accuracies = answers
    assert there['images'] == 0 and 'ProgressCallback' not in there['callbacks']
    assert there['accuracies'] == pytest.approx(accuracies)
