"A page in a headless Chromium, and a web app for it to look at"
from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from playwright.sync_api import Page, sync_playwright

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


@contextmanager
def new_page() -> Iterator[Page]:
    "An empty page of a browser that runs as long as the block"
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox']) as browser:
        yield browser.new_page(viewport=dict(width=1000, height=800))


def add_examples(page: Page, name: str, files: Iterable[Path]) -> None:
    "Fill in the page's form for examples of a class"
    page.locator('input[placeholder]').first.fill(name)
    _send(page, '/add', files)


def classify(page: Page, files: Iterable[Path]) -> None:
    "Fill in the page's form for queries"
    _send(page, '/classify', files)


def _send(page: Page, action: str, files: Iterable[Path]) -> None:
    form = page.locator(f'form[action="{action}"]').first
    form.locator('input[type=file]').set_input_files(list(files))
    with page.expect_navigation(): form.locator('button').click()
