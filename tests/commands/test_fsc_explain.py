import pytest
from fastcore.script import CliError

from fsc_fastai.commands.fsc_explain import fsc_explain


def test_explain_writes_a_picture(trained):
    image = trained/'hues'/'novel'/'novel0'/'0.png'
    fsc_explain(trained/'learner.pkl', trained/'hues'/'novel', str(image), out=trained/'maps'/'heat.png')
    assert (trained/'maps'/'heat.png').stat().st_size > 1000


@pytest.mark.parametrize('call, named', [
    (lambda root: fsc_explain(root/'learner.pkl', root/'hues'/'novel'), 'IMAGE'),
])
def test_what_the_user_can_mend_is_one_line(trained, call, named):
    with pytest.raises(CliError, match=named): call(trained)
