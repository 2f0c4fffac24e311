"What the commands share, and what goes wrong on the way"
from functools import partial

import pandas as pd
import pytest
import torch
from fastai.torch_core import default_device
from fastcore.script import CliError

from fsc_fastai.commands.common import learner_from, plain_errors, printable, printable_lines
from fsc_fastai.commands.fsc_deploy import fsc_deploy
from fsc_fastai.commands.fsc_eval import fsc_eval
from fsc_fastai.commands.fsc_explain import fsc_explain
from fsc_fastai.commands.fsc_reproduce import fsc_reproduce
from fsc_fastai.commands.fsc_train import fsc_train
from fsc_fastai.deploy import FewShotClassifier
from fsc_fastai.learner.core import FSCLearner

from .conftest import SMALL


def test_a_bundle_is_evaluated_explained_and_deployed_as_the_pickle_is(trained, monkeypatch, capsys):
    novel, image = trained/'hues'/'novel', trained/'hues'/'val'/'val0'/'0.png'
    episodes = dict(n_episodes=6, n_way=3, n_shot=2, n_query=3)
    fsc_eval(trained/'learner.pkl', novel, trained/'hues'/'val', csv=trained/'pickle.csv', **episodes)
    table, shown = pd.read_csv(trained/'pickle.csv'), capsys.readouterr().out
    assert table.domain.tolist() == ['novel', 'val'] and (table.n_episodes == 6).all() and 'chance' in shown and '33' in shown
    fsc_explain(trained/'learner.pkl', novel, image, out=trained/'pickle.png')
    fsc_deploy(trained/'learner.pkl', novel, out=trained/'of_pickle')
    capsys.readouterr()
    monkeypatch.setattr('fsc_fastai.commands.common.load_learner', None)
    fsc_eval(trained/'bundle', novel, trained/'hues'/'val', csv=trained/'bundle.csv', **episodes)
    fsc_explain(trained/'bundle', novel, image, out=trained/'bundle.png')
    fsc_deploy(trained/'bundle', novel, out=trained/'of_bundle', reject=.2)
    for ending in ('csv', 'png'): assert (trained/f'bundle.{ending}').read_bytes() == (trained/f'pickle.{ending}').read_bytes()
    one, other = (FewShotClassifier.from_pretrained(trained/o) for o in ('of_pickle', 'of_bundle'))
    assert other.reject == .2 and other.predict(image).probabilities == one.predict(image).probabilities
    assert 'pickle' not in capsys.readouterr().err


def test_a_bundle_of_a_learner_with_examples_has_them(trained):
    learn = learner_from(trained/'bundle').set_support(trained/'hues'/'novel', reject=.1)
    learn.path = trained
    learn.export('with.pkl', bundle='with')
    known = FewShotClassifier.from_pretrained(trained/'with')
    assert known.reject == .1 and len(known.classes_) == 4


def test_names_do_not_steer_the_terminal():
    assert printable('a\x1b[2J\x9b\u202e\r\nb') == r'a\u001b[2J\u009b\u202e\u000d\u000ab'
    assert printable('Zaunkönig 鳥 🐦\u200d⬛') == 'Zaunkönig 鳥 🐦\u200d⬛' and printable_lines('a\nb\x00') == 'a\nb\\u0000'


@pytest.mark.parametrize('name, content, message', [
    ('gone.pkl', None, 'no learner in .*gone.pkl'),
    ('text.pkl', b'nonsense', 'text.pkl holds no learner'),
    ('empty.pkl', b'', 'empty.pkl holds no learner'),
])
def test_what_is_no_learner_is_named(tmp_path, name, content, message):
    if content is not None: (tmp_path/name).write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message): learner_from(tmp_path/name)


def test_another_object_is_no_learner(tmp_path):
    torch.save({'a': 1}, tmp_path/'dict.pkl')
    with pytest.raises(ValueError, match='dict.pkl holds no learner'): learner_from(tmp_path/'dict.pkl')


@pytest.mark.parametrize('call, named', [
    (lambda root: fsc_train(str(root/'nowhere')), 'nowhere'),
    (lambda root: fsc_train(str(root/'hues'), **(SMALL | dict(arch='conv5'))), 'conv4'),
    (lambda root: fsc_train(str(root/'hues'), **(SMALL | dict(n_way=50))), 'n_way=50'),
    (lambda root: fsc_train(str(root/'hues'), **(SMALL | dict(n_query=50))), '--drop-small'),
    (lambda root: fsc_eval(root/'learner.pkl', str(root/'gone'), n_episodes=2), 'gone'),
    (lambda root: fsc_explain(root/'learner.pkl', root/'hues'/'novel'), 'IMAGE'),
    (lambda root: fsc_reproduce('table2', preset='huge'), 'demo'),
    (lambda root: fsc_reproduce('table5', preset='tiny', out=root/'out'), 'table4'),
    (lambda root: fsc_reproduce('table2', preset='photos', out=root/'out'), 'needs --data'),
    (lambda root: fsc_reproduce('table2', preset='tiny', methods='RN,LRN', out=root/'out'), 'no LRN; choose of RN'),
    (lambda root: fsc_reproduce('table2', preset='tiny', finished=True, out=root/'none'), 'no finished cells'),
    (lambda root: fsc_reproduce('table2', preset='tiny', pack=root/'a.tgz', out=root/'out'), '--pack needs --data'),
    (lambda root: fsc_reproduce('table2', preset='tiny', jobs=0, out=root/'out'), 'jobs=0: at least 1')])
def test_what_the_user_can_mend_is_one_line(trained, call, named):
    with pytest.raises(CliError, match=named): call(trained)


def test_errors_of_the_program_keep_their_traceback():
    def bug(): raise KeyError('a bug')
    with pytest.raises(KeyError): plain_errors(bug)


def test_commands_compute_on_a_device_that_is_there(trained, monkeypatch, capsys):
    "By default on fastai's, a GPU if there is one; `meta` stands for one here"
    seen = []
    monkeypatch.setattr(FSCLearner, 'evaluate', lambda learn, *args, **kwargs: seen.append(
        (learn.dls.device.type, next(learn.model.parameters()).device.type)) or pd.DataFrame(
            [dict(domain='novel', way=3, shot=1, n_episodes=2, n_query=1, accuracy=1., ci95=0., protocol='2×1')]))
    for device in (None, 'cpu', 'meta'):
        for source in ('learner.pkl', 'bundle'):
            fsc_eval(trained/source, trained/'hues'/'novel', n_way=3, n_shot=1, n_query=1, n_episodes=2, device=device)
    default = default_device().type
    assert seen == [(default, default)]*2 + [('cpu', 'cpu')]*2 + [('meta', 'meta')]*2
    gone = 'mps' if not torch.backends.mps.is_available() else 'cuda'
    for run in (partial(fsc_eval, trained/'bundle', trained/'hues'/'novel'),
                partial(fsc_explain, trained/'bundle', trained/'hues'/'novel', trained/'hues'/'val'/'val0'/'0.png')):
        with pytest.raises(CliError, match=f"on device '{gone}' here.*cpu always can"): run(device=gone)
