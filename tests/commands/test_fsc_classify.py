import csv
import io
import json
import sys

import pytest

from fsc_fastai.commands.fsc_classify import fsc_classify
from tests.deploy.toys import COLOURS, classifier, examples, folder_of, picture


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp('classify')
    classifier().fit(*examples()).save(root/'model')
    folder_of(root/'support', 3, ['green', 'yellow'])
    for c in ('red', 'green'): picture(c, 60).save(root/f'{c}.png')
    (root/'broken.png').write_bytes(b'nothing')
    return root


@pytest.fixture
def command(files, monkeypatch, capsys):
    "Run `fsc_classify` as from a terminal, in the folder of `files`: its output, its errors and its exit status"
    def run(*args):
        monkeypatch.chdir(files)
        monkeypatch.setattr(sys, 'argv', ['fsc_classify', *args])
        # `call_parse` reads the command line when it is called from the top level of a script
        script = str(files/'fsc_classify')
        try:
            exec(compile('command()', script, 'exec'), {'__name__': '__main__', '__file__': script, 'command': fsc_classify})
            status = 0
        except SystemExit as e: status = e.code
        out = capsys.readouterr()
        return out.out, out.err, status
    return run


def test_table(command):
    out, _, status = command('red.png', 'green.png', '--model', 'model')
    assert [line.split()[:2] for line in out.splitlines()] == [['red.png', 'red'], ['green.png', 'green']] and not status


def test_json_and_another_support_folder(command):
    out, _, _ = command('green.png', '--model', 'model', '--support', 'support', '--format', 'json')
    row, = json.loads(out)
    assert row['label'] == 'green' and row['probabilities'].keys() == {'green', 'yellow'}


def test_csv_of_a_folder(command):
    out, _, _ = command('support', '--model', 'model', '--format', 'csv', '--reject', '1.01')
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 6 and all(r['label'] == '' for r in rows)
    assert float(rows[0]['confidence']) == max(float(rows[0][c]) for c in COLOURS)


@pytest.mark.parametrize('form', ['table', 'json', 'csv'])
def test_control_characters_of_names_are_escaped(command, files, form):
    known = classifier().fit(examples()[0], [f'{c}\x1b[2J\x9b' for c in examples()[1]])
    known.save(files/'steering')
    out, err, status = command('red.png', '--model', 'steering', '--format', form)
    assert not status and r'red\u001b[2J\u009b' in out and not set(out + err) & {'\x1b', '\x9b'}
    if form == 'json': assert json.loads(out)[0]['label'] == 'red\x1b[2J\x9b'


def test_a_broken_image_does_not_stop_the_others(command):
    out, err, status = command('broken.png', 'red.png', '--model', 'model')
    assert out.split()[1] == 'red' and 'broken.png' in err and status == 1


@pytest.mark.parametrize('args, message', [
    (['red.png'], '--model is needed'),
    (['--model', 'model'], 'no images to classify'),
    (['no.png', '--model', 'model'], 'no such image: no.png'),
    (['red.png', '--model', 'support'], 'no classifier in support'),
    (['red.png', '--model', 'model', '--format', 'xml'], 'one of table, json, csv'),
    (['red.png', '--model', 'model', '--support', 'nowhere'], 'nowhere'),
])
def test_errors_are_a_line(command, args, message):
    out, err, status = command(*args)
    assert status and message in err + str(status) and 'Traceback' not in err
