import pytest
import timm
import torch
from fastcore.script import CliError

from fsc_fastai.commands.common import learner_from
from fsc_fastai.commands.fsc_classify import fsc_classify
from fsc_fastai.commands.fsc_deploy import fsc_deploy
from fsc_fastai.deploy import FewShotClassifier, Preprocess
from tests.encode.stub import ARCH


def test_deployed_classifier_is_the_learner_with_the_examples(trained, capsys, recwarn):
    fsc_deploy(trained/'learner.pkl', trained/'hues'/'novel', out=trained/'classifier', reject=.3, keep=.9, thumbnails=True,
               half=True)
    told = capsys.readouterr()
    assert 'novel0 (12)' in told.out and not [w for w in recwarn if 'pickle' in str(w.message)]
    assert 'learner.pkl is a pickle: loading it executes what its writer put into it' in told.err
    saved = FewShotClassifier.from_pretrained(trained/'classifier')
    assert (saved.reject, saved.keep, saved.calibrated_) == (.3, .9, 'examples') and 'classifier/ (' in told.out
    assert saved.thumbnails('novel1')
    image = trained/'hues'/'novel'/'novel2'/'0.png'
    learn = learner_from(trained/'learner.pkl').set_support(trained/'hues'/'novel')
    assert saved.predict(image).probabilities == pytest.approx(learn.classifier().predict(image).probabilities, abs=.01)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "A checkpoint of the stub, under names of its own"
    state = timm.create_model(ARCH).state_dict()
    path = tmp_path_factory.mktemp('weights')/'vendor.pth'
    torch.save({f'p{i}.{k.rpartition(".")[2]}': v for i, (k, v) in enumerate(state.items())}, path)
    return path


def test_a_backbone_and_a_folder_of_examples_are_enough(trained, weights, tmp_path, capsys):
    fsc_deploy(trained/'hues'/'novel', arch=ARCH, weights=str(weights), remap=True, head='lda', out=tmp_path/'classifier')
    told = capsys.readouterr().out
    assert '12 of 12 tensors loaded, all by their position' in told and 'novel0 (12)' in told
    saved = FewShotClassifier.from_pretrained(tmp_path/'classifier')
    assert saved.preprocess == Preprocess.from_backbone(ARCH)
    fsc_classify(str(trained/'hues'/'novel'/'novel1'/'0.png'), model=str(tmp_path/'classifier'))
    assert 'novel1' in capsys.readouterr().out


@pytest.mark.parametrize('call, named', [
    (dict(arch='resnet118'), 'did you mean resnet18'),
    (dict(arch=ARCH, weights='nowhere.pth'), 'nowhere.pth'),
    (dict(arch=ARCH, head='relation'), 'nobody has trained'),
    (dict(), 'fsc_deploy LEARNER EXAMPLES, or fsc_deploy --arch NAME EXAMPLES'),
])
def test_what_the_user_can_mend_is_one_line(trained, weights, call, named):
    if call.get('head'): call = call | dict(weights=str(weights), remap=True)
    with pytest.raises(CliError, match=named): fsc_deploy(trained/'hues'/'novel', **call)
    with pytest.raises(CliError, match='--weights'): fsc_deploy(trained/'bundle', trained/'hues'/'novel', weights='a.pth')
