"The web page in a headless Chromium, which `apt-get install chromium` provides"
import base64
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.request

import pytest
import uvicorn
from websockets.sync.client import connect

from fsc_fastai.serve import create_app
from tests.inference.toys import classifier, folder_of

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium: apt-get install chromium')


class Browser:
    "A page in Chromium, steered by its DevTools protocol"
    def __init__(self, profile):
        self.log = profile.with_suffix('.log').open('w+')
        self.process = subprocess.Popen([CHROMIUM, '--headless=new', '--no-sandbox', '--disable-gpu', '--remote-debugging-port=0',
                                         f'--user-data-dir={profile}', 'about:blank'], stderr=self.log)
        with urllib.request.urlopen(f'http://{self._address()}/json') as answer: pages = json.load(answer)
        self.socket = connect(next(o['webSocketDebuggerUrl'] for o in pages if o['type'] == 'page'), max_size=None)
        self.asked, self.number, self.loads = [], 0, 0
        for domain in ('Page', 'DOM', 'Network'): self.call(f'{domain}.enable')

    def _address(self):
        for _ in range(600):
            self.log.seek(0)
            if found := re.search(r'ws://([\d.:]+)/', self.log.read()): return found[1]
            time.sleep(.1)
        raise RuntimeError('Chromium does not start')

    def receive(self):
        "The next message; addresses that are asked for come into `asked`, finished pages are counted"
        message = json.loads(self.socket.recv(timeout=60))
        if message.get('method') == 'Network.requestWillBeSent': self.asked.append(message['params']['request']['url'])
        self.loads += message.get('method') == 'Page.loadEventFired'
        return message

    def call(self, method, **params):
        self.number += 1
        self.socket.send(json.dumps(dict(id=self.number, method=method, params=params)))
        while (message := self.receive()).get('id') != self.number: pass
        return message['result']

    def run(self, script): return self.call('Runtime.evaluate', expression=script)['result'].get('value')

    def after_load(self, act):
        before = self.loads
        act()
        while self.loads == before: self.receive()

    def choose_files(self, selector, files):
        root = self.call('DOM.getDocument')['root']['nodeId']
        node = self.call('DOM.querySelector', nodeId=root, selector=selector)['nodeId']
        self.call('DOM.setFileInputFiles', nodeId=node, files=[str(f) for f in files])

    def submit(self, action):
        button = f'form[action="{action}"] button'
        self.after_load(lambda: self.run(f"document.querySelector('{button}').click()"))

    def screenshot(self, path):
        picture = self.call('Page.captureScreenshot', captureBeyondViewport=True)['data']
        path.write_bytes(base64.b64decode(picture))

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait()
        self.log.close()


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path/'profile')
    yield browser
    browser.close()


@pytest.fixture
def address():
    server = uvicorn.Server(uvicorn.Config(create_app(classifier()), port=0, log_level='error'))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started: time.sleep(.05)
    yield f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}'
    server.should_exit = True
    thread.join()


def test_drop_examples_drop_a_query_see_the_answer(browser, address, tmp_path):
    support, queries = folder_of(tmp_path/'support', 2, ['blue', 'red']), folder_of(tmp_path/'new', 1, ['red', 'blue'], first=50)
    browser.after_load(lambda: browser.call('Page.navigate', url=address))
    for name in ('blue', 'red'):
        browser.choose_files('form[action="/add"] input[type=file]', (support/name).iterdir())
        browser.run(f"document.querySelector('input[placeholder]').value = '{name}'")
        browser.submit('/add')
    browser.choose_files('form[action="/classify"] input[type=file]', [queries/'red'/'0.png', queries/'blue'/'0.png'])
    browser.submit('/classify')
    assert browser.run("[...document.querySelectorAll('.answer h2')].map(o => o.textContent).join()") == 'red,blue'
    # every picture is drawn, and has its size
    assert browser.run("[...document.images].every(o => o.complete && o.naturalWidth > 0)")
    assert browser.run("document.images.length") == 8
    browser.screenshot(tmp_path/'page.png')
    assert (tmp_path/'page.png').stat().st_size > 5000
    assert {url.split('/')[2] for url in browser.asked if url.startswith('http')} == {address.removeprefix('http://')}
