"The web page as an ASGI app: it checks where requests come from, and how many are in progress"
from __future__ import annotations

import asyncio
import functools
import ipaddress
from collections.abc import Callable, Iterable
from contextlib import suppress
from urllib.parse import urlsplit

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.datastructures import FormData, Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...deploy import FewShotClassifier
from .limits import Limits, Refused
from .page import Page
from .uploads import Uploads

__all__ = ['create_app', 'HEADERS']

# Headers of every answer. The page loads nothing from elsewhere: no scripts, no fonts, no frames
HEADERS = {
    'Content-Security-Policy': "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'self'; "
                               "frame-ancestors 'none'; base-uri 'none'",
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'same-origin', # with no-referrer, browsers hide the origin of forms, which is checked
    'Cache-Control': 'no-store',
}


class _Guard:
    "Refuses forms of other sites and requests for other hosts, and gives every answer its headers"
    def __init__(self, app: ASGIApp, hosts: Iterable[str]):
        self.app, self.hosts = app, {'localhost', *(h.lower().strip('[]') for h in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] == 'websocket': return await send({'type': 'websocket.close'})
        if scope['type'] != 'http': return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message['type'] == 'http.response.start':
                message['headers'] = [*message['headers'], *((k.lower().encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        return await (self._refusal(scope) or self.app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get('host', '')
        if not self._is_ours(host, scope):
            return PlainTextResponse('This page is not served under that name: start fsc_serve with --allow NAME', 400)
        if scope['method'] not in ('GET', 'HEAD') and not _same_site(headers, host):
            return PlainTextResponse('This form was sent from another site', 403)
        return None

    def _is_ours(self, host: str, scope: Scope) -> bool:
        "Is `host` a name that was allowed, or the address that the connection came to?"
        with suppress(ValueError):
            name = urlsplit(f'//{host}').hostname
            return name is not None and (name in self.hosts or _same_address(name, (scope.get('server') or ('',))[0]))
        return False


def _same_address(a: str, b: str) -> bool:
    try: return ipaddress.ip_address(a) == ipaddress.ip_address(b)
    except ValueError: return a == b


def _same_site(headers: Headers, host: str) -> bool:
    "Does a form come from this page? Browsers say so; other programs need not"
    if headers.get('sec-fetch-site', 'same-origin') not in ('same-origin', 'none'): return False
    origin = headers.get('origin')
    return origin is None or origin.lower().partition('://')[2] == host.lower()


class _Desk:
    "Takes forms, lets a few threads do what they ask for, and answers with the page"
    def __init__(self, page: Page, limits: Limits):
        self.page, self.limits, self.uploads, self.jobs = page, limits, Uploads(limits), 0

    @functools.cached_property
    def threads(self) -> CapacityLimiter:
        "Limits how many threads work at a time; made when the server runs, because it belongs to the server's event loop"
        return CapacityLimiter(self.limits.workers)

    async def home(self, request: Request) -> Response: return self._answer()

    def route(self, path: str, work: Callable[[FormData], list]) -> Route:
        "The route of a form: `work` does what the form asks for, and returns answers for the page"
        async def endpoint(request: Request) -> Response:
            try:
                self._check_queue()  # before the body as well: it need not be read
                async with self.uploads.form(request) as form: return self._answer(await self._worked(work, form))
            except asyncio.CancelledError: return self._answer(error='the page is being closed', status=503)
            except ClientDisconnect: return Response(status_code=400)  # nobody reads it
            except Refused as e: return self._answer(error=str(e), status=e.status)
            except MemoryError: return self._answer(error='not enough memory: try again in a moment', status=503)
            except (ValueError, TypeError, OSError) as e: return self._answer(error=str(e), status=400)
        return Route(path, endpoint, methods=['POST'])

    async def _worked(self, work: Callable[[FormData], list], form: FormData) -> list:
        self._check_queue()
        self.jobs += 1
        try: return await to_thread.run_sync(work, form, limiter=self.threads, abandon_on_cancel=True)
        finally: self.jobs -= 1

    def _check_queue(self) -> None:
        if self.jobs >= self.limits.workers + self.limits.waiting: raise Refused('too busy: try again in a moment', 503)

    def _answer(self, answers: list | None = None, error: str = '', status: int = 200) -> Response:
        return HTMLResponse(self.page.html(answers, error), status, {'Retry-After': '5'} if status == 503 else None)


def create_app(
    classifier: FewShotClassifier, # With or without examples; all visitors share it
    limits: Limits | None = None, # What the page accepts; None: `Limits()`
    hosts: Iterable[str] = (), # Names that the page is served under, besides localhost and the address of the machine
) -> ASGIApp:
    """The web page as an ASGI app.

    No path or file name from a visitor is ever used, nothing is written to disk, fields are read from bodies only, and forms of
    other sites are refused. The server has to set time limits for headers and answers, as `fsc_serve` does.
    """
    limits = limits or Limits()
    page = Page(classifier, limits)
    desk = _Desk(page, limits)
    return _Guard(Starlette(routes=[Route('/', desk.home), desk.route('/add', page.add), desk.route('/remove', page.remove),
                                    desk.route('/correct', page.correct), desk.route('/classify', page.classify)]), hosts)
