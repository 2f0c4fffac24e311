"A headless Chromium, and a web page for it to look at"
from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from websockets.sync.client import connect

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')


@contextmanager
def served(app) -> Iterator[str]:
    "Address of an app that runs as long as the block"
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level='error'))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started: time.sleep(.05)
    try: yield f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}'
    finally:
        server.should_exit = True
        thread.join()


class Browser:
    "A page in Chromium, steered by its DevTools protocol"
    def __init__(self, profile):
        self.log = profile.with_suffix('.log').open('w+')
        assert CHROMIUM, 'no Chromium: apt-get install chromium'
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

    def open(self, address): self.after_load(lambda: self.call('Page.navigate', url=address))

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

    def resize(self, width, height=800):
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path, width=1000):
        "The whole page, as it is in a window of a width"
        self.resize(width)
        self.resize(width, self.run('document.documentElement.scrollHeight'))
        path.write_bytes(base64.b64decode(self.call('Page.captureScreenshot')['data']))

    def add_examples(self, name, files):
        "Fill in the page's form for examples of a class"
        self.choose_files('form[action="/add"] input[type=file]', files)
        self.run(f"document.querySelector('input[placeholder]').value = {json.dumps(name)}")
        self.submit('/add')

    def classify(self, files):
        "Fill in the page's form for queries"
        self.choose_files('form[action="/classify"] input[type=file]', files)
        self.submit('/classify')

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait()
        self.log.close()
