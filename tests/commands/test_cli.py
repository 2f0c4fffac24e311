"The command line from training to heatmaps, on images that the test makes"
import pandas as pd
import pytest
from fastcore.script import CliError

from fsc_fastai.commands import cli
from tests.learners import SIZE, write_hues

SMALL = dict(arch='conv4', n_way=3, n_shot=2, n_query=3, n_episodes=4, epochs=1, pretrain_epochs=1, size=SIZE)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A folder of images and the learner that `fsc_train` made of it"
    root = tmp_path_factory.mktemp('cli')
    write_hues(root/'hues')
    cli.fsc_train(str(root/'hues'), method='proto', out=root/'out'/'learner.pkl', **SMALL)
    return root


def test_train_then_eval(trained, capsys):
    cli.fsc_eval(trained/'out'/'learner.pkl', str(trained/'hues'/'novel'), str(trained/'hues'/'val'), n_episodes=5, n_way=3,
                 n_shot=2, n_query=4, csv=trained/'table.csv')
    shown = capsys.readouterr().out
    table = pd.read_csv(trained/'table.csv')
    assert table.domain.tolist() == ['novel', 'val'] and (table.n_episodes == 5).all()
    assert 'novel' in shown and 'chance' in shown and '33' in shown


def test_lrp_trains_too(trained):
    cli.fsc_train(str(trained/'hues'), method='relation', out=trained/'lrp.pkl', lrp=True, **SMALL)
    assert (trained/'lrp.pkl').exists()


def test_explain_writes_a_picture(trained):
    image = trained/'hues'/'novel'/'novel0'/'0.png'
    cli.fsc_explain(trained/'out'/'learner.pkl', trained/'hues'/'novel', str(image), out=trained/'maps'/'heat.png')
    assert (trained/'maps'/'heat.png').stat().st_size > 1000


@pytest.mark.parametrize('call, named', [
    (lambda root: cli.fsc_train(str(root/'nowhere')), 'nowhere'),
    (lambda root: cli.fsc_train(str(root/'hues'), **(SMALL | dict(arch='conv5'))), 'conv4'),
    (lambda root: cli.fsc_train(str(root/'hues'), **(SMALL | dict(n_way=50))), 'n_way=50'),
    (lambda root: cli.fsc_eval(root/'out'/'learner.pkl', str(root/'gone'), n_episodes=2), 'gone'),
    (lambda root: cli.fsc_explain(root/'out'/'learner.pkl', root/'hues'/'novel'), 'IMAGE'),
    (lambda root: cli.fsc_reproduce('table2', preset='huge'), 'demo'),
    (lambda root: cli.fsc_reproduce('table5', preset='tiny', out=root), 'table4'),
    (lambda root: cli.fsc_reproduce('table2', preset='photos', out=root), 'needs --data'),
    (lambda root: cli.fsc_reproduce('table2', preset='tiny', methods='RN,LRN', out=root), 'no LRN; choose of RN'),
    (lambda root: cli.fsc_reproduce('table2', preset='tiny', finished=True, out=root/'none'), 'no finished cells'),
])
def test_what_the_user_can_mend_is_one_line(trained, call, named):
    with pytest.raises(CliError, match=named): call(trained)


def test_console_scripts_exist():
    from configparser import ConfigParser
    from pathlib import Path
    parser = ConfigParser(delimiters=['='])
    parser.read(Path(__file__).parents[2]/'settings.ini')
    import importlib
    for script in parser['DEFAULT']['console_scripts'].split():
        module, function = script.split('=')[1].split(':')
        assert callable(getattr(importlib.import_module(module), function)), script
