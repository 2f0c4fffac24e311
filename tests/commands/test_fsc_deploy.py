import pytest

from fsc_fastai.commands.common import learner_from
from fsc_fastai.commands.fsc_deploy import fsc_deploy
from fsc_fastai.deploy import FewShotClassifier


def test_deployed_classifier_is_the_learner_with_the_examples(trained, capsys, recwarn):
    fsc_deploy(trained/'learner.pkl', trained/'hues'/'novel', trained/'classifier', reject=.3, thumbnails=True)
    told = capsys.readouterr()
    assert 'novel0 (12)' in told.out and not [w for w in recwarn if 'pickle' in str(w.message)]
    assert 'learner.pkl is a pickle: loading it executes what its writer put into it' in told.err
    saved = FewShotClassifier.from_pretrained(trained/'classifier')
    assert saved.reject == .3 and saved.thumbnails('novel1')
    image = trained/'hues'/'novel'/'novel2'/'0.png'
    learn = learner_from(trained/'learner.pkl').set_support(trained/'hues'/'novel')
    assert saved.predict(image).probabilities == pytest.approx(learn.classifier().predict(image).probabilities, abs=1e-5)
