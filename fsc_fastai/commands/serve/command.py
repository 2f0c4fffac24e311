"`fsc_serve`: serves the page by uvicorn, with a time limit for every request"
# Annotations are read by `call_parse` at run time, so this module has no `from __future__ import annotations`.
import asyncio
import logging
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastcore.script import call_parse
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..common import load_classifier, plain_errors
from .app import HEADERS, create_app

__all__ = ['fsc_serve', 'server_of']

HEAD, FETCH, ALL = 10, 120, 900 # seconds for the headers of a request, for fetching its answer, and for the whole of it
CONNECTIONS = 500 # at a time
BAD_REQUEST = '\r\n'.join(['HTTP/1.1 400 Bad Request', 'Content-Type: text/plain; charset=utf-8', 'Content-Length: 15',
                           'Connection: close', *(f'{k}: {v}' for k, v in HEADERS.items()), '', 'Invalid request']).encode()


class _Protocol(H11Protocol):
    "uvicorn's protocol, with time limits within requests as well; uvicorn only limits the time between them"
    clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS: transport.abort()
        self.give(HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.clock: self.clock.cancel()
        super().connection_lost(exc)

    def give(self, seconds: float) -> None:
        "End the connection after so many seconds; this replaces an earlier limit"
        if self.clock: self.clock.cancel()
        self.clock = self.loop.call_later(seconds, self.transport.abort)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self.cycle.response_complete: self.give(ALL)

    def on_response_complete(self) -> None:
        self.give(FETCH if self.transport.get_write_buffer_size() else HEAD)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is None or self.cycle.response_complete: self.transport.write(BAD_REQUEST)
        self.transport.close()


def server_of(
    app: Any, # An ASGI app
    grace: int = 3, # Seconds for requests in progress to finish after the server is told to end
) -> uvicorn.Server:
    "An HTTP server with time limits for what visitors send and fetch"
    logging.getLogger('python_multipart').setLevel(logging.ERROR)  # visitors are told what is wrong with their forms
    return uvicorn.Server(uvicorn.Config(app, http=_Protocol, ws='none', lifespan='off', log_level='error', access_log=False,
                                         server_header=False, proxy_headers=False, timeout_graceful_shutdown=grace))


@call_parse
def fsc_serve(
    model: str, # Folder of a saved classifier (`FewShotClassifier.save`), or `hf://owner/name` of one on the Hugging Face Hub
    support: Path | None = None, # Folder with a folder of images per class; default: the examples saved with the model
    host: str = '127.0.0.1', # Address to listen on; 0.0.0.0 for everyone who can reach this machine
    port: int = 8000, # Port to listen on; 0: any that is free
    allow: str = '', # Names that visitors reach this machine by, besides its address, separated by commas: example.org
) -> None:
    """A web page to classify images by a few examples of each class.

    Drop examples and queries onto the page; it shows labels, probabilities and heatmaps. All visitors share the classes.
    """
    app = create_app(plain_errors(lambda: load_classifier(model, support)), hosts=[host, *filter(None, allow.split(','))])
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    listening = plain_errors(lambda: socket.create_server((host, port), family=family, backlog=512))
    name = f'[{host}]' if ':' in host else host
    print(f'http://{name}:{listening.getsockname()[1]}', flush=True)
    with suppress(KeyboardInterrupt): server_of(app).run(sockets=[listening])
