"""Hostile requests to a running `fsc_serve`: what is refused says so, costs little and changes nothing; the page still answers.

`outcomes(n, seed)` sends `n` requests of the kinds below, while others hold connections half open. A request fails if it gets no
answer though one is due, a status of 500 and above other than 503, or an answer without its headers; if it is refused after more
than 2 s of processor time, or takes more than 512 MB beyond what the server had before it; and if the page does not answer
afterwards, or shows other classes though the request was refused.
"""
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import psutil

from fsc_fastai.commands.serve.app import HEADERS
from tests.attacks.images import FORMATS, bombs, encoded, flat_png, mutated, pick, up_to
from tests.attacks.table import Outcome
from tests.deploy.toys import classifier, examples, picture

MB = 2**20
MOST_MB, MOST_SECONDS = 512, 2.
SERVE = 'import sys; from fsc_fastai.commands.serve import fsc_serve; fsc_serve(sys.argv[1], port=0)'
GET = b'GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'


class Server:
    "A running `fsc_serve`, what it costs, and what it answers"
    def __init__(self, folder):
        known = classifier().fit(*examples(colours=['blue', 'red'])).save(folder, thumbnails=True)
        self.process = subprocess.Popen([sys.executable, '-c', SERVE, known], stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline().rpartition(':')[2])
        self.classes = None

    def connect(self, timeout=90): return socket.create_connection(('127.0.0.1', self.port), timeout=timeout)

    def ask(self, raw, more=True):
        "All that comes back for these bytes until the server closes; without `more` our side of the connection is closed"
        found = bytearray()
        with self.connect() as s, suppress(ConnectionError):
            with suppress(ConnectionError): s.sendall(raw)
            if not more: s.shutdown(socket.SHUT_WR)
            while piece := s.recv(2**16): found += piece
        return bytes(found)

    def seconds(self):
        "Processor time of the server and of the decoders that it has started"
        return sum(psutil.Process(self.process.pid).cpu_times()[:4])

    def megabytes(self):
        "Memory of the server and of its running decoders; until a child is a decoder, its memory is that of the server"
        server, found = psutil.Process(self.process.pid), 0
        for process in (server, *server.children()):
            with suppress(psutil.Error):
                if process == server or any('decode.py' in word for word in process.cmdline()): found += process.memory_info().rss
        return found / MB


@contextmanager
def peak_of(server):
    "A list with the largest memory that the server has had inside the block, looked at every few milliseconds"
    found, done = [server.megabytes()], threading.Event()

    def look():
        while not done.wait(.004): found[0] = max(found[0], server.megabytes())
    thread = threading.Thread(target=look)
    thread.start()
    try: yield found
    finally:
        done.set()
        thread.join()


def post(path, body, kind='multipart/form-data; boundary=b', host='localhost', headers='', length=None):
    "The bytes of a request"
    head = (f'POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: {kind}\r\n{headers}'
            f'Content-Length: {len(body) if length is None else length}\r\n\r\n')
    return head.encode('latin-1') + body


def form(*parts):
    "A multipart body of `(field, content)`; bytes are files"
    head = lambda field, o: f'--b\r\nContent-Disposition: form-data; name="{field}"' + '; filename="x"' * isinstance(o, bytes)
    data = lambda o: o if isinstance(o, bytes) else o.encode('utf-8', 'surrogatepass')
    return b''.join(data(head(field, o)) + b'\r\n\r\n' + data(o) + b'\r\n' for field, o in parts) + b'--b--\r\n'


def chunked(pieces, path='/classify'):
    "The bytes of a request whose body comes in pieces"
    head = (f'POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n'
            'Content-Type: multipart/form-data; boundary=b\r\n\r\n').encode()
    return head + b''.join(b'%x\r\n%b\r\n' % (len(o), o) for o in pieces) + b'0\r\n\r\n'


GOOD = {name: encoded(picture('red', 1), name) for name in FORMATS}
FORM = form(('name', 'blue'), ('files', GOOD['PNG']))
ADD = post('/add', FORM)
REMOVE = form(('name', 'red'))
BOMBS = bombs()
WORDS = ['', ' ', 'x' * 65, 'x' * 5000, '\0', '\n', '\x1b[2J', '\u202e', '../../etc/passwd', '<script>', '%00', '\ud800', '0']


def broken_images(rng):
    return post('/classify', form(*[('files', mutated(rng, GOOD[pick(rng, FORMATS)])) for _ in range(1 + up_to(rng, 3))]))


def image_bombs(rng): return post(pick(rng, ['/classify', '/add']), form(('name', 'red'), ('files', pick(rng, BOMBS)(rng))))


def many_images(rng):
    files = pick(rng, [
        lambda: [b'x'] * 1001, lambda: [GOOD['PNG']] * 21, lambda: [b''] * 900, lambda: [GOOD['JPEG']] * 5 + [b'x'],
        lambda: [flat_png(3900, 4000)] * 3 + [flat_png(1, 10**6)], lambda: [bytes(9 * MB)] * 6])()
    return post('/classify', form(*[('files', o) for o in files]))


def broken_forms(rng): return post('/add', mutated(rng, FORM))


def foreign_fields(rng):
    value = pick(rng, WORDS)
    fields = [('name', value), ('files', value), ('name', b'red'), ('files', GOOD['GIF']), (value, 'x'), ('name', 'red'),
              ('image', value), ('image', GOOD['GIF'])]
    chosen = [fields[i] for i in rng.permutation(len(fields))[:up_to(rng, 6)]]
    multipart = 'multipart/form-data'
    kind = pick(rng, [f'{multipart}; boundary=b', 'application/x-www-form-urlencoded', 'application/json', 'text/plain', '',
                      multipart, f'{multipart}; boundary={"b" * 300}', f'{multipart}; charset=idna; boundary=b'])
    body = pick(rng, [form(*chosen), json.dumps(dict(name=value, files=[value])).encode(), b'[' * up_to(rng, 10**6),
                      b'name=a&' * up_to(rng, 10**5), b'name=' + b'%' * up_to(rng, 10**5)])
    return post(pick(rng, ['/add', '/classify', '/remove', '/correct', '/add?name=a&files=b', '/remove?name=red']), body, kind)


def other_sites(rng):
    origin = pick(rng, ['Origin: http://evil.example', 'Origin: null', 'Sec-Fetch-Site: cross-site', 'Sec-Fetch-Site: same-site',
                        'Origin: http://localhost.evil.example', 'Origin: ']) + '\r\n'
    return pick(rng, [
        post('/remove', REMOVE, headers=origin), post('/add', form(('name', 'evil'), ('files', GOOD['PNG'])), headers=origin),
        post('/remove', REMOVE, host=pick(rng, ['evil.example', '10.1.2.3', '[::1', '', 'a@b', 'localhost.evil', '\xff']))])


def large_bodies(rng):
    file = lambda n: b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n' + bytes(n)
    return pick(rng, [
        lambda: post('/add', file(70 * MB)), lambda: post('/add', b'--b', length=10**(8 + up_to(rng, 20))),
        lambda: chunked([file(10)] + [bytes(MB)] * 70), lambda: chunked([b'x'] * up_to(rng, 10**5)),
        lambda: chunked([b'\r\n--'] * up_to(rng, 10**5)), lambda: post('/add', b'\r\n--b' * up_to(rng, 10**6)),
        lambda: post('/add', form(('files', bytes(11 * MB)))),
        lambda: post('/add', b'--b\r\n' + b'x' * up_to(rng, 10**7) + b': y\r\n'),
        lambda: post('/add', b'--b\r\n' + b'x: y\r\n' * up_to(rng, 10**5)), lambda: post('/add', form(*[('a', 'b')] * 5000)),
        lambda: post('/add', file(0) + b'\r\n--c' * up_to(rng, 10**7))])()


def broken_http(rng):
    get = b'GET / HTTP/1.1\r\nHost: localhost\r\n'
    return pick(rng, [
        lambda: rng.integers(0, 256, 1 + up_to(rng, 3000), dtype=np.uint8).tobytes(), lambda: b'GET / HTTP/1.1\r\n\r\n',
        lambda: get + b'a: ' + b'b' * up_to(rng, 10**5) + b'\r\n\r\n', lambda: get + b'Host: evil\r\nConnection: close\r\n\r\n',
        lambda: mutated(rng, ADD[:200], 20), lambda: post('/add', b'x', headers='Transfer-Encoding: chunked\r\n'),
        lambda: post('/add', b'x', length='-1'), lambda: post('/add', b'x', length='1, 2'),
        lambda: chunked([b'x'])[:-5] + b'zz\r\n\r\n',
        lambda: b'CONNECT evil:1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n',
        lambda: b'GET /%00/../%ff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n',
        lambda: get + b'Upgrade: websocket\r\nConnection: upgrade, close\r\nSec-WebSocket-Key: x\r\n\r\n',
        lambda: (get + b'\r\n') * 50 + b'x\r\n\r\n', lambda: b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'])()


# Kind: what makes a request of it, how many in a hundred, and whether it may be but half a request, to which no answer is due
KINDS = {
    'broken images': (broken_images, 20, False), 'image bombs': (image_bombs, 20, False), 'many images': (many_images, 5, False),
    'broken forms': (broken_forms, 15, False), 'foreign fields': (foreign_fields, 10, False),
    'other sites and hosts': (other_sites, 10, False), 'large bodies': (large_bodies, 10, False),
    'broken HTTP': (broken_http, 10, True)}


def outcomes(
    n: int, # Requests, the first of each kind in turn
    seed: int, # The k-th request depends on (seed, k) alone
    seconds: float = MOST_SECONDS, # Of processor time: a refusal that takes more has failed
):
    "Send hostile requests; yield the `Outcome` of each, of connections left half open, and of telling the server to end"
    every, shares = list(KINDS), np.array([share for _, share, _ in KINDS.values()]) / 100
    order = every[:n] + np.random.default_rng(seed).choice(every, max(0, n - len(every)), p=shares).tolist()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(folder)
        try:
            for name in FORMATS: server.ask(post('/classify', form(('files', GOOD[name]))))  # what is loaded once
            held = HalfOpen(server, max(4, n // 40))
            for k, kind in enumerate(order): yield _outcome(server, kind, [seed, k], seconds)
            for is_open in held.open_still(): yield Outcome('half open', 'failed' if is_open else 'refused', 'still open')
            yield Outcome('told to end', 'ended' if _ends(server) else 'failed', 'it goes on')
        finally:
            server.process.kill()
            server.process.wait()


def _outcome(server, kind, seed, seconds):
    "Send a request and look after the server"
    make, _, may_be_half = KINDS[kind]
    raw, before, had = make(np.random.default_rng(seed)), server.seconds(), server.megabytes()
    with peak_of(server) as peak: answer = server.ask(raw, more=not may_be_half)
    took, over = server.seconds() - before, peak[0] - had
    refused = not answer or answer[9:10] == b'4' or answer[9:12] == b'503'
    page = server.ask(GET)
    names, problem = re.findall(rb'<strong>(.*?)</strong>', page, re.DOTALL), None
    if not page.startswith(b'HTTP/1.1 200'): problem = 'the page does not answer'
    elif not answer: problem = None if may_be_half else 'no answer'
    elif answer[9:10] == b'5' and not refused: problem = f'status {answer[9:12]!r}'
    elif missing := _missing(answer): problem = f'no {missing}: {answer[:300]!r}'
    elif refused and server.classes not in (None, names): problem = f'classes were {server.classes}, are {names}'
    elif over > MOST_MB: problem = f'{over:.0f} MB'
    elif refused and took > seconds: problem = f'{took:.1f} s'
    server.classes = names
    return Outcome(kind, 'failed' if problem else 'refused' if refused else 'answered', f'{seed}: {problem}', over, took)


def _missing(answer):
    head = answer.partition(b'\r\n\r\n')[0].lower().decode('latin-1')
    return ', '.join(k for k, v in HEADERS.items() if f'{k}: {v}'.lower() not in head)


class HalfOpen:
    "Connections that begin a request and never end it"
    def __init__(self, server, n):
        self.start, self.sockets = time.monotonic(), [server.connect() for _ in range(n)]
        for i, s in enumerate(self.sockets): s.sendall([b'', b'GET / HTTP/1.1\r\nHo', ADD[:150], ADD[:-9]][i % 4])

    def open_still(self, limit=60):
        "Whether each connection is still open after so many seconds"
        for s in self.sockets: s.settimeout(max(.01, self.start + limit - time.monotonic()))
        return list(map(_is_open, self.sockets))


def _is_open(s):
    with s, suppress(ConnectionError):
        try:
            while s.recv(2**16): pass
        except TimeoutError: return True
    return False


def _ends(server, limit=15):
    "Does the server end within some seconds when it is told to, with requests half way?"
    held = HalfOpen(server, 40)
    time.sleep(.5)
    server.process.send_signal(signal.SIGTERM)
    try: server.process.wait(limit)
    except subprocess.TimeoutExpired: return False
    return not any(held.open_still())
