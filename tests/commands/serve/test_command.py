"A running server: what it prints, time limits, its end"
import asyncio
import socket
import threading
import time
from contextlib import contextmanager

import pytest
from fastcore.script import CliError

from fsc_fastai.commands.serve import Limits, create_app
from fsc_fastai.commands.serve import command as serve_command
from fsc_fastai.commands.serve.command import fsc_serve, server_of
from tests.attacks.requests import FORM, GET, outcomes, post
from tests.attacks.table import rows, table
from tests.deploy.toys import classifier, examples


@contextmanager
def running(app, grace=3):
    "A server in a thread, and the address that it listens at"
    listening = socket.create_server(('127.0.0.1', 0))
    server = server_of(app, grace)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try: yield server, listening.getsockname()
    finally:
        server.should_exit = True
        thread.join()


def ask(address, raw):
    "All that comes back for these bytes until the connection is closed"
    with socket.create_connection(address, timeout=60) as s:
        s.sendall(raw)
        try: return b''.join(iter(lambda: s.recv(2**16), b''))
        except ConnectionError: return b''


@pytest.fixture
def hasty(monkeypatch):
    "Time limits that a test can wait for"
    monkeypatch.setattr(serve_command, 'HEAD', .3)
    with running(create_app(classifier(), Limits(patience=.3))) as (_, address): yield address


@pytest.mark.parametrize('begun', [b'', b'GET / HT', b'GET / HTTP/1.1\r\nHost: localhost\r\nX', GET[:-2]])
def test_headers_that_do_not_come_are_not_waited_for(hasty, begun): assert ask(hasty, begun) == b''


def test_bodies_that_do_not_come_are_not_waited_for(hasty):
    answer = ask(hasty, post('/add', FORM)[:-9])
    assert answer.startswith(b'HTTP/1.1 408') and b'took too long' in answer


def test_an_answer_that_is_not_fetched_and_a_body_after_it_end_too(hasty):
    keep = GET.replace(b'Connection: close\r\n', b'')
    assert ask(hasty, keep).startswith(b'HTTP/1.1 200'), 'closed when no other request comes'
    assert ask(hasty, b'GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx').startswith(b'HTTP/1.1 200')


@pytest.mark.parametrize('raw', [b'\0\r\n\r\n', b'GET / HTTP/1.1\r\n\r\n', b'GET / HTTP/1.1\r\nHost: a\r\nb\r\n\r\n'])
def test_what_is_no_request_is_told_so_with_the_headers(hasty, raw):
    answer = ask(hasty, raw)
    assert answer.startswith(b'HTTP/1.1 400') and b'X-Content-Type-Options: nosniff' in answer


def test_a_server_ends_with_requests_half_way():
    with running(create_app(classifier()), grace=1) as (server, address):
        held = [socket.create_connection(address) for _ in range(8)]
        for i, s in enumerate(held): s.sendall(post('/add', FORM)[:-9] if i % 2 else b'GET /')
        while len(server.server_state.tasks) < 4: time.sleep(.01)
    for s in held:
        with s: s.settimeout(10); assert s.recv(9) in (b'', b'HTTP/1.1 ')


def test_the_address_is_printed_when_the_port_is_open(tmp_path, monkeypatch, capsys):
    folder = classifier().fit(*examples()).save(tmp_path)
    seen = []

    def run(self, sockets):
        address = capsys.readouterr().out.strip()
        assert address == f'http://127.0.0.1:{sockets[0].getsockname()[1]}'
        socket.create_connection(sockets[0].getsockname()).close()
        seen.append(sockets[0])
        raise KeyboardInterrupt  # as Ctrl-C does: no traceback
    monkeypatch.setattr('uvicorn.Server.run', run)
    fsc_serve(str(folder), port=0)
    with seen[0], pytest.raises(CliError, match='OSError.*in use'): fsc_serve(str(folder), port=seen[0].getsockname()[1])
    assert not capsys.readouterr().out


def test_a_short_attack():
    found = list(outcomes(16, 1, seconds=float('inf')))
    assert not [o for o in found if o.what == 'failed']
    assert len(found) == 16 + 4 + 1 and len(rows(found)) == 10 and 'image bombs' in table('requests', found)
