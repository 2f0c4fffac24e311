"From a trained learner to a deployed classifier on the command line, and what goes wrong on the way"
from functools import partial

import pandas as pd
import pytest
import torch
from fastai.torch_core import default_device
from fastcore.script import CliError

from fsc_fastai.commands.cli import fsc_eval, fsc_explain
from fsc_fastai.commands.cli_classify import fsc_deploy
from fsc_fastai.commands.common import learner_from, plain_errors, printable, printable_lines
from fsc_fastai.deploy import FewShotClassifier
from fsc_fastai.learner.core import FSCLearner
from tests.learners import hue_learner


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A folder with a learner's file and images by class"
    root = tmp_path_factory.mktemp('deploy')
    hue_learner(root/'hues', 'proto').export('learner.pkl', bundle='bundle')
    return root


def test_deployed_classifier_is_the_learner_with_the_examples(exported, capsys, recwarn):
    fsc_deploy(exported/'learner.pkl', exported/'hues'/'novel', exported/'classifier', reject=.3, thumbnails=True)
    told = capsys.readouterr()
    assert 'novel0 (12)' in told.out and not [w for w in recwarn if 'pickle' in str(w.message)]
    assert 'learner.pkl is a pickle: loading it executes what its writer put into it' in told.err
    saved = FewShotClassifier.from_pretrained(exported/'classifier')
    assert saved.reject == .3 and saved.thumbnails('novel1')
    image = exported/'hues'/'novel'/'novel2'/'0.png'
    learn = learner_from(exported/'learner.pkl').set_support(exported/'hues'/'novel')
    assert saved.predict(image).probabilities == pytest.approx(learn.classifier().predict(image).probabilities, abs=1e-5)


def test_a_bundle_is_evaluated_explained_and_deployed_as_the_pickle_is(exported, monkeypatch, capsys):
    novel, image = exported/'hues'/'novel', exported/'hues'/'val'/'val0'/'0.png'
    episodes = dict(n_episodes=6, n_way=3, n_shot=2, n_query=3)
    fsc_eval(exported/'learner.pkl', novel, csv=exported/'pickle.csv', **episodes)
    fsc_explain(exported/'learner.pkl', novel, image, out=exported/'pickle.png')
    fsc_deploy(exported/'learner.pkl', novel, exported/'of_pickle')
    capsys.readouterr()
    monkeypatch.setattr('fsc_fastai.commands.common.load_learner', None)
    fsc_eval(exported/'bundle', novel, csv=exported/'bundle.csv', **episodes)
    fsc_explain(exported/'bundle', novel, image, out=exported/'bundle.png')
    fsc_deploy(exported/'bundle', novel, exported/'of_bundle', reject=.2)
    for ending in ('csv', 'png'): assert (exported/f'bundle.{ending}').read_bytes() == (exported/f'pickle.{ending}').read_bytes()
    one, other = (FewShotClassifier.from_pretrained(exported/o) for o in ('of_pickle', 'of_bundle'))
    assert other.reject == .2 and other.predict(image).probabilities == one.predict(image).probabilities
    assert 'pickle' not in capsys.readouterr().err


def test_a_bundle_of_a_learner_with_examples_has_them(exported):
    learn = learner_from(exported/'bundle').set_support(exported/'hues'/'novel', reject=.1)
    learn.path = exported
    learn.export('with.pkl', bundle='with')
    known = FewShotClassifier.from_pretrained(exported/'with')
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
    import torch
    torch.save({'a': 1}, tmp_path/'dict.pkl')
    with pytest.raises(ValueError, match='dict.pkl holds no learner'): learner_from(tmp_path/'dict.pkl')


def test_errors_of_the_program_keep_their_traceback():
    def bug(): raise KeyError('a bug')
    with pytest.raises(KeyError): plain_errors(bug)


def test_commands_compute_on_a_device_that_is_there(exported, monkeypatch, capsys):
    "By default on fastai's, a GPU if there is one; `meta` stands for one here"
    seen = []
    monkeypatch.setattr(FSCLearner, 'evaluate', lambda learn, *args, **kwargs: seen.append(
        (learn.dls.device.type, next(learn.model.parameters()).device.type)) or pd.DataFrame(
            [dict(domain='novel', way=3, shot=1, n_episodes=2, n_query=1, accuracy=1., ci95=0., protocol='2×1')]))
    for device in (None, 'cpu', 'meta'):
        for source in ('learner.pkl', 'bundle'):
            fsc_eval(exported/source, exported/'hues'/'novel', n_way=3, n_shot=1, n_query=1, n_episodes=2, device=device)
    default = default_device().type
    assert seen == [(default, default)]*2 + [('cpu', 'cpu')]*2 + [('meta', 'meta')]*2
    gone = 'mps' if not torch.backends.mps.is_available() else 'cuda'
    for run in (partial(fsc_eval, exported/'bundle', exported/'hues'/'novel'),
                partial(fsc_explain, exported/'bundle', exported/'hues'/'novel', exported/'hues'/'val'/'val0'/'0.png')):
        with pytest.raises(CliError, match=f"on device '{gone}' here.*cpu always can"): run(device=gone)
