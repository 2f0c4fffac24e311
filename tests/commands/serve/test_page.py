import gc
import re

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from fsc_fastai.commands.serve import Limits, create_app
from tests.attacks.images import encoded
from tests.deploy.toys import classifier, examples, picture


def upload(*images, name='x.png'):
    return [('files', (name, o if isinstance(o, bytes) else encoded(o, 'PNG'), 'image/png')) for o in images]


def client_of(known, **limits): return TestClient(create_app(known, Limits(**limits)))


@pytest.fixture
def client(): return client_of(classifier().fit(*examples(colours=['blue', 'red'])))


def test_the_page_shows_the_classes(client):
    page = client.get('/')
    assert page.status_code == 200 and page.text.startswith('<!doctype html>')
    assert 'blue' in page.text and 'red' in page.text and page.text.count('data:image/png;base64') == 6
    assert '3 examples' in page.text


def test_the_page_needs_nothing_from_elsewhere(client):
    page = client.post('/classify', files=upload(picture('red', 9)))
    without_pictures = re.sub(r'data:image/png;base64,[^"]+', '', page.text)
    assert not re.search(r'https?:|//[a-z]|<script|<link|<iframe|@import|url\(', without_pictures)
    assert "default-src 'none'" in page.headers['content-security-policy'] and 'set-cookie' not in page.headers


def test_a_classifier_from_nothing_in_the_browser():
    client = client_of(classifier())
    assert 'None yet' in client.get('/').text
    client.post('/add', data=dict(name='blue'), files=upload(picture('blue', 1)))
    early = client.post('/classify', files=upload(picture('red', 9)))
    assert early.status_code == 400 and 'two classes at least' in early.text
    client.post('/add', data=dict(name='red'), files=upload(picture('red', 1), picture('red', 2)))
    page = client.post('/classify', files=upload(picture('red', 9), picture('blue', 9))).text
    assert re.findall(r'<h2>(red|blue)</h2>', page) == ['red', 'blue']
    assert page.count('alt="query"') == 2 and page.count('what speaks for') == 2 and page.count('<progress') == 4


def test_classes_can_be_removed(client):
    client.post('/add', data=dict(name='grey'), files=upload(picture('grey', 1)))
    assert 'grey' in client.get('/').text
    assert 'grey' not in client.post('/remove', data=dict(name='grey')).text
    gone = client.post('/remove', data=dict(name='grey'))
    assert gone.status_code == 400 and 'no class' in gone.text


def test_rejected_images_are_none_of_these():
    known = classifier().fit(*examples(colours=['blue', 'red']))
    known.reject, known.temperature = .99, 1000.
    assert 'none of these classes' in client_of(known).post('/classify', files=upload(picture('red', 1))).text


@pytest.mark.parametrize('files, status, message', [
    (upload(b'<svg xmlns="http://www.w3.org/2000/svg"/>', name='x.svg'), 415, 'cannot be read'),
    (upload(b'%PDF-1.4', name='x.png'), 415, 'cannot be read'),
    (upload(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n'), 415, 'cannot be read'),
    (upload(encoded(picture('red', 1), 'PNG')[:200]), 415, 'cannot be read'),
    (upload(b''), 400, 'no image was chosen'),
    (upload(*[picture('red', 1)] * 4), 413, '4 images at once: at most 3'),
    (upload(Image.new('RGB', (300, 300))), 413, 'more than 50,000 pixels'),
    (upload(b'\x89PNG' + bytes(200_000)), 413, 'larger than 0.1 MB'),
])
def test_uploads_are_limited(files, status, message):
    client = client_of(classifier().fit(*examples(colours=['blue', 'red'])), files=3, pixels=50_000, file_mb=.1)
    answer = client.post('/classify', files=files)
    assert answer.status_code == status and message in answer.text
    assert client.post('/add', data=dict(name='new'), files=files).status_code == status
    assert 'new' not in re.findall(r'<strong>(.*?)</strong>', client.get('/').text)


def test_numbers_of_classes_and_examples_are_limited():
    client = client_of(classifier(), classes=2, examples=2)
    add = lambda name, n=1: client.post('/add', data=dict(name=name), files=upload(*[picture('red', 1)] * n))
    assert [add('a').status_code, add('b').status_code] == [200, 200]
    assert 'at most 2 classes' in add('c').text and 'at most 2 examples' in add('a', 2).text
    assert add('a').status_code == 200


@pytest.mark.parametrize('name', ['', '   ', 'x' * 65, 'a\nb', 'a\x00b'])
def test_names_are_checked(client, name):
    answer = client.post('/add', data=dict(name=name), files=upload(picture('red', 1)))
    assert answer.status_code == 400 and 'a class needs a name' in answer.text


def test_names_are_text_and_never_paths(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = upload(picture('grey', 1), name='../../etc/passwd')
    page = client.post('/add', data=dict(name='<script>alert(1)</script>'), files=files)
    assert page.status_code == 200 and '<script' not in page.text and 'passwd' not in page.text
    assert client.post('/add', data=dict(name='../../x'), files=upload(picture('green', 1))).status_code == 200
    assert not list(tmp_path.iterdir()), 'nothing is written'
    assert all(client.get(path).status_code == 404 for path in ('/../settings.ini', '/static/x.css', '/etc/passwd', '/x.ico'))


def test_classifying_leaves_nothing_behind(client):
    def alive():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
    ask = lambda: client.post('/classify', files=upload(picture('red', 1), picture('blue', 1))).raise_for_status()
    ask()  # what is made with the first answer stays
    before = alive()
    for _ in range(3): ask()
    assert alive() == before


def test_the_right_answer_joins_the_examples(client):
    page = client.post('/classify', files=upload(picture('red', 9), picture('grey', 9))).text
    keys = re.findall(r'value="([\w-]{22})"', page)
    assert len(set(keys)) == 2 and page.count('action="/correct"') == 2
    assert '4 examples' in client.post('/correct', data=dict(image=keys[0], name='red')).text
    assert 'grey' in client.post('/correct', data=dict(image=keys[1], name='grey')).text, 'a class that is new'
    assert '<h2>grey</h2>' in client.post('/classify', files=upload(picture('grey', 9))).text
    again = client.post('/correct', data=dict(image=keys[1], name='grey'))
    assert again.status_code == 400 and 'no longer at hand' in again.text and '1 example<' in again.text


@pytest.mark.parametrize('fields, message', [
    (dict(image='guessed', name='red'), 'no longer at hand'), (dict(name='red'), '“image”'), (dict(image='x'), '“name”'),
    (dict(image='x', name='x' * 65), 'a class needs a name')])
def test_what_corrects_nothing_is_refused(client, fields, message):
    answer = client.post('/correct', data=fields)
    assert answer.status_code == 400 and message in answer.text and answer.text.count('<strong>') == 2


def test_limits_hold_for_right_answers_too():
    known = classifier().fit(*examples(colours=['blue', 'red']))
    two = 2 * 3 * known.preprocess.shape[1]**2 / 2**20
    client = client_of(known, examples=3, classes=2, asked_mb=two)
    page = client.post('/classify', files=upload(*(picture('red', i) for i in range(3)))).text
    keys = re.findall(r'value="([\w-]{22})"', page)
    correct = lambda key, name: client.post('/correct', data=dict(image=key, name=name)).text
    assert 'no longer at hand' in correct(keys[0], 'red'), 'two images are all that is kept'
    assert 'at most 3 examples' in correct(keys[1], 'red') and 'at most 2 classes' in correct(keys[1], 'new')
    assert 'at most 3 examples' in correct(keys[2], 'blue'), 'what was refused is still at hand'


def test_long_names_have_room_and_are_not_cut(client):
    name = 'Lophophorus_impejanus_' * 2 + 'subspecies'
    client.post('/add', data=dict(name=name), files=upload(picture('grey', 1)))
    page = client.post('/classify', files=upload(picture('grey', 1))).text
    assert page.count(f'<span>{name}</span>') == 1 and 'width: 6rem' not in page
