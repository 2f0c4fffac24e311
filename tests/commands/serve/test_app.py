"Who may ask the page for what: hosts, origins, forms of every kind, too much at a time; the headers of every answer"
import threading
import urllib.parse

import pytest
from starlette.testclient import TestClient

from fsc_fastai.commands.serve import Limits, create_app
from fsc_fastai.commands.serve.app import HEADERS
from tests.attacks.images import encoded
from tests.commands.serve.test_page import client_of, upload
from tests.deploy.toys import classifier, examples, picture

BOUNDARY = {'content-type': 'multipart/form-data; boundary=b'}
FILE = b'; filename="x"'
PART = b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'


@pytest.fixture(scope='module')
def known(): return classifier().fit(*examples(colours=['blue', 'red']))


@pytest.fixture
def client(known): return client_of(known)


def classes(client): return client.get('/').text.count('<strong>')


@pytest.mark.parametrize('ask, status', [
    (lambda c: c.get('/'), 200), (lambda c: c.get('/nothing'), 404), (lambda c: c.get('/add'), 405),
    (lambda c: c.post('/classify', files=upload(b'junk')), 415), (lambda c: c.post('/add'), 400),
    (lambda c: c.get('/', headers={'host': 'evil.example'}), 400),
    (lambda c: c.post('/add', headers={'origin': 'http://evil.example'}), 403)])
def test_every_answer_has_the_headers(client, ask, status):
    answer = ask(client)
    assert answer.status_code == status
    assert {k: answer.headers[k] for k in HEADERS} == HEADERS


def test_an_unforeseen_error_has_them_too(known, monkeypatch):
    monkeypatch.setattr('fsc_fastai.commands.serve.page.Page.html', lambda *args: 1 / 0)
    answer = TestClient(create_app(known), raise_server_exceptions=False).get('/')
    assert answer.status_code == 500 and 'nosniff' in answer.headers['x-content-type-options']


@pytest.mark.parametrize('host', ['evil.example', 'evil.example:80', 'testserver.evil', '', 'a@evil', '[::1', '10.0.0.1'])
def test_foreign_hosts_are_refused(client, host):
    answer = client.post('/remove', data=dict(name='red'), headers={'host': host})
    assert answer.status_code == 400 and '--allow' in answer.text and classes(client) == 2


@pytest.mark.parametrize('host', ['localhost', 'localhost:8000', 'Names.example.org', '[::1]:8000', 'testserver'])
def test_own_hosts_are_served(known, host):
    app = create_app(known, hosts=['names.example.org', '::1'])
    assert TestClient(app).get('/', headers={'host': host}).status_code == 200


@pytest.mark.parametrize('headers, served', [
    ({'origin': 'http://evil.example'}, False), ({'origin': 'null'}, False), ({'sec-fetch-site': 'cross-site'}, False),
    ({'sec-fetch-site': 'same-site'}, False), ({'origin': 'http://testserver:81'}, False),
    ({'origin': 'http://testserver', 'sec-fetch-site': 'cross-site'}, False),
    ({'origin': 'http://testserver', 'sec-fetch-site': 'same-origin'}, True), ({'origin': 'https://testserver'}, True),
    ({}, True)])
def test_forms_of_other_sites_are_refused(known, headers, served):
    client = client_of(classifier().fit(*examples(colours=['blue', 'green', 'red'])))
    answer = client.post('/remove', data=dict(name='red'), headers=headers)
    assert answer.status_code == (200 if served else 403) and classes(client) == 3 - served


@pytest.mark.parametrize('path', ['/add', '/classify', '/remove', '/correct'])
@pytest.mark.parametrize('request_of', [
    dict(data=dict(name='new', files='text')), dict(data=dict(name='new', files=['a', 'b'])),
    dict(params=dict(name='blue', files='x')), dict(json=dict(name='new', files=['x'])),
    dict(content=b'[' * 100_000, headers={'content-type': 'application/json'}),
    dict(content=b'', headers=BOUNDARY), dict(content=b'--b--', headers=BOUNDARY), dict(content=b'x' * 5000, headers=BOUNDARY),
    dict(content=b'--b\r\n\r\nx\r\n--b--', headers=BOUNDARY), dict(content=b'x', headers={'content-type': 'multipart/form-data'}),
    dict(content=PART % (b'name', FILE, b'new') + PART % (b'files', FILE, b'') + b'--b--', headers=BOUNDARY),
    dict(content=PART % (b'name', b'', b'x' * 5000) + b'--b--', headers=BOUNDARY),
    dict(content=(PART % (b'name', b'', b'blue')) * 2 + b'--b--', headers=BOUNDARY),
    dict(content=b'name=%ff%fe&name=%00&files=%', headers={'content-type': 'application/x-www-form-urlencoded'}),
    dict(content=b'name=blue', headers={'content-type': 'text/plain'}), dict()], ids=str)
def test_malformed_requests_are_told_so(client, path, request_of):
    answer = client.post(path, **request_of)
    assert answer.status_code == 400 and classes(client) == 2, answer.text[:200]
    assert 'role="alert"' in answer.text, 'the page says what is wrong'


def test_a_name_that_is_a_file_and_files_that_are_text(client):
    both = upload(picture('red', 1))
    assert client.post('/add', files=[('name', ('x', b'new')), *both]).status_code == 400
    assert client.post('/add', data=dict(name='new', files='text'), files=both).status_code == 400
    assert client.post('/add', data=dict(x='y'), params=dict(name='new'), files=both).status_code == 400
    assert classes(client) == 2


def test_memory_that_is_not_there_is_told(client, monkeypatch):
    def nothing_left(*args): raise MemoryError
    monkeypatch.setattr('fsc_fastai.commands.serve.page.images_of', nothing_left)
    answer = client.post('/classify', files=upload(picture('red', 1)))
    assert answer.status_code == 503 and answer.headers['retry-after'] == '5'


def test_the_page_answers_while_others_are_worked_on_and_too_many_are_turned_away(known, monkeypatch):
    go_on, started = threading.Event(), threading.Semaphore(0)

    def work(*args):
        started.release()
        assert go_on.wait(60)
        return iter([])
    monkeypatch.setattr('fsc_fastai.commands.serve.page.images_of', work)
    statuses = []
    with TestClient(create_app(known, Limits(workers=2, waiting=1))) as client:  # `with`: one event loop for all threads
        ask = lambda: statuses.append(client.post('/classify', files=upload(picture('red', 1))).status_code)
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for t in threads: t.start()
        for _ in range(2): assert started.acquire(timeout=60)
        while True:  # the third waits for its turn; others are not even read
            answer = client.post('/classify', content=b'no form')
            if answer.status_code == 503: break
        assert answer.headers['retry-after'] == '5' and 'too busy' in answer.text
        assert client.get('/').status_code == 200 and not statuses
        go_on.set()
        for t in threads: t.join()
    assert statuses == [200] * 3


def test_names_go_through_the_form_of_their_class(client):
    strange = '<b>"\'&amp;é日 %41+'
    assert client.post('/add', data=dict(name=strange), files=upload(picture('grey', 1))).status_code == 200
    assert classes(client) == 3
    encoded = urllib.parse.urlencode(dict(name=strange))
    gone = client.post('/remove', content=encoded, headers={'content-type': 'application/x-www-form-urlencoded'})
    assert gone.status_code == 200 and classes(client) == 2


def test_an_image_that_is_refused_adds_none_of_its_request(client):
    files = [('files', ('x', o)) for o in (encoded(picture('grey', 1), 'PNG'), b'junk')]
    answer = client.post('/add', data=dict(name='new'), files=files)
    assert answer.status_code == 415 and 'image 2' in answer.text and classes(client) == 2
