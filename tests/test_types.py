"The types that a user's checker finds, without a plugin or stubs: what README shows is accepted, and results have names"
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = """
from fsc_fastai.all import (EpisodeDataLoaders, FewShotClassifier, LRPGuidedCallback, RelationNet, compare, fsc_learner,
                            untar_glyph_domains, untar_glyphs)

dls = EpisodeDataLoaders.from_folder(untar_glyphs(), n_way=5, n_shot=5)
learn = fsc_learner(dls, 'resnet10', RelationNet, cbs=LRPGuidedCallback())
learn.fine_tune(5)
table = learn.evaluate(untar_glyph_domains())
learn.explain().plot()
learn.set_support('examples')
label, position, probabilities = learn.predict('new/00.jpg')
learn.export('learner.pkl', bundle='learner')
classifier = FewShotClassifier.from_pretrained('learner').fit(['a.jpg', 'b.jpg'], ['a', 'b'])
classifier.calibrate('plants')
"""
REVEALED = {
    'untar_glyphs()': 'Path', 'dls': 'EpisodeDataLoaders', 'learn': 'FSCLearner', 'table': 'DataFrame',
    "learn.confusion('greek')": 'DataFrame', 'compare(table, table)': 'DataFrame', 'classifier': 'FewShotClassifier',
    'classifier.set_params(reject=.5)': 'FewShotClassifier', "classifier.predict('a.jpg')": 'Prediction',
    "classifier.predict('a.jpg').label": 'str | int | None', "classifier.predict(['a.jpg', 'b.jpg'])": 'ndarray',
    "classifier.predict_proba(['a.jpg'])": 'ndarray', "classifier.save('folder')": 'Path',
}


def mypy(folder):
    "Lines of what it says of user.py"
    ran = subprocess.run([sys.executable, '-m', 'mypy', '--no-error-summary', '--ignore-missing-imports', '--hide-error-context',
                          f'--cache-dir={ROOT/".mypy_cache"}', 'user.py'], cwd=folder, capture_output=True, text=True)
    assert not ran.stderr, ran.stderr
    return [line.split(': ', 2) for line in ran.stdout.splitlines() if line.startswith('user.py')]


def pyright(folder):
    "Likewise"
    (folder/'pyrightconfig.json').write_text(json.dumps(dict(typeCheckingMode='standard', extraPaths=[str(ROOT)])))
    command = [Path(sys.executable).parent/'basedpyright', '--outputjson', '--pythonpath', sys.executable, 'user.py']
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return [(o['range']['start']['line'], o['severity'].replace('information', 'note'), o['message'])
            for o in json.loads(ran.stdout)['generalDiagnostics']]


@pytest.mark.slow
@pytest.mark.parametrize('checker', [mypy, pyright])
def test_what_a_user_writes_has_types(checker, tmp_path):
    (tmp_path/'user.py').write_text(CODE + ''.join(f'reveal_type({o})\n' for o in REVEALED))
    said = checker(tmp_path)
    assert not [o for o in said if o[1] != 'note']
    found = [message for *_, message in said]
    assert len(found) == len(REVEALED)
    # pandas and numpy bring no types for mypy without stubs of theirs; pyright reads their code
    for expected, message in zip(REVEALED.values(), found, strict=True):
        assert expected in message or (checker is mypy and expected == 'DataFrame' and '"Any"' in message), message
