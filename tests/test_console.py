"From a trained learner to a deployed classifier on the command line, and what goes wrong on the way"
import pytest

from fsc_fastai.cli_classify import fsc_deploy
from fsc_fastai.console import learner_from, plain_errors
from fsc_fastai.inference import FewShotClassifier
from tests.learners import hue_learner


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A folder with a learner's file and images by class"
    root = tmp_path_factory.mktemp('deploy')
    hue_learner(root/'hues', 'proto').export('learner.pkl')
    return root


def test_deployed_classifier_is_the_learner_with_the_examples(exported, capsys, recwarn):
    fsc_deploy(exported/'learner.pkl', exported/'hues'/'novel', exported/'classifier', reject=.3, thumbnails=True)
    assert 'novel0 (12)' in capsys.readouterr().out and not [w for w in recwarn if 'pickle' in str(w.message)]
    saved = FewShotClassifier.from_pretrained(exported/'classifier')
    assert saved.reject == .3 and saved.thumbnails('novel1')
    image = exported/'hues'/'novel'/'novel2'/'0.png'
    learn = learner_from(exported/'learner.pkl').set_support(exported/'hues'/'novel')
    assert saved.predict(image).probabilities == pytest.approx(learn.classifier().predict(image).probabilities, abs=1e-5)


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
