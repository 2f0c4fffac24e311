"""Do what README, recipes and results tell a reader to do, in their order, in a new folder: `python -m tour [folder]`.

What they say is run as it stands, only smaller: `SMALLER` and `OPTIONS` say how, and a change that fits nowhere is an error. Each
command runs in a process of its own. To save ten imports of torch it is forked from one that has imported the library; the
prediction and the web page are started from nothing.
"""
from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ['DOCUMENTS', 'SMALLER', 'OPTIONS', 'blocks', 'smaller', 'commands']

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT/'README.md', ROOT/'docs'/'recipes.md', ROOT/'docs'/'results.md')
BIN = Path(sys.executable).parent
PORT = 8613

# What makes a snippet small: a pattern and what takes its place
SMALLER = {
    r'untar_glyphs\(\)': 'untar_glyphs(n_classes=30, n_images=12, size=32, progress=False)',
    r'untar_glyph_domains\(\)': 'untar_glyph_domains(n_classes=6, n_images=12, size=32, progress=False)',
    r"'resnet10'": "'conv4'",
    r"cache='cuda'": "cache='cpu'",
    r'vit_tiny_patch16_224': 'test_vit',
    r"'vit_small_patch14_dinov2\.lvd142m'": "'test_vit', 'backbone.pth'",
    r'size=84|Resize\(84\)': lambda m: m[0].replace('84', '32'),
    r'n_shot=5\b(?=\)|, cache)': 'n_shot=5, n_query=3, n_episodes=3, size=32',
    r'n_shot=1\b(?=\)|, size)': 'n_shot=1, n_query=3, n_episodes=3',
    r'faithfulness\(compared, n_episodes=\d+': 'faithfulness(compared, n_episodes=1',
    r'n_episodes=\d{2,}': 'n_episodes=4',
    r'fine_tune\((\d)': 'fine_tune(1, pretrain_epochs=1',
    r'fit_one_cycle\((\d+)': 'fit_one_cycle(1',
    r'learn\.evaluate\((?=\S)': 'learn.evaluate(n_episodes=4, n_query=3, domains=',
}
# The same for the text of a command: the tour has no network
OFFLINE = {r'--arch vit_small_patch14_dinov2\.lvd142m': '--arch test_vit --weights backbone.pth'}
# What makes a command small
OPTIONS = {
    'fsc_train': '--arch conv4 --size 32 --epochs 1 --pretrain-epochs 2 --n-episodes 6 --n-query 5',
    'fsc_eval': '--n-episodes 20 --n-query 5',
    'fsc_reproduce': '--preset tiny --data domains --seen birds --seeds 1 --shots 5',
    'fsc_serve': f'--port {PORT}',
}


def blocks(document: Path) -> Iterator[tuple[str, str]]:
    "Language and text of each python and bash block of a Markdown file, in order"
    yield from re.findall(r'^```(python|bash)\n(.*?)^```', document.read_text(encoding='utf-8'), re.S | re.M)


def smaller(code: str) -> str:
    "A snippet as the tour runs it"
    for pattern, replacement in SMALLER.items(): code = re.sub(pattern, replacement, code)  # type: ignore[arg-type]
    return code


def commands(text: str) -> Iterator[list[str]]:
    "The commands of a bash block as the tour runs them"
    for line in text.splitlines():
        for pattern, replacement in OFFLINE.items(): line = re.sub(pattern, replacement, line)
        words = shlex.split(line, comments=True)
        if words: yield [*words, *OPTIONS.get(words[0], '').split()]


@contextmanager
def timed(what: str) -> Iterator[None]:
    "Announce a step, and how long it took"
    print(f'\n=== {what}', flush=True)
    start = time.perf_counter()
    yield
    print(f'--- {time.perf_counter() - start:.1f} s', flush=True)


def forked(act: Callable[[], Any]) -> None:
    "Run `act` in a copy of this process; `SystemExit` where it failed"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            act()
            status = 0
        except SystemExit as e:
            if e.code: print(e.code, file=sys.stderr)
            status = int(bool(e.code))
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    if os.waitpid(child, 0)[1]: raise SystemExit('the tour ends here: this step failed')


def run_command(words: list[str]) -> None:
    "A console script by its entry point, as `call_parse` reads it from a command line"
    from importlib.metadata import entry_points
    script, = (e for e in entry_points(group='console_scripts') if e.name == words[0])
    sys.argv = [str(BIN/words[0]), *words[1:]]
    # `call_parse` reads the command line when it is called from the top level of a script
    names = {'__name__': '__main__', '__file__': sys.argv[0], 'command': script.load()}
    exec(compile('command()', sys.argv[0], 'exec'), names)


def classify_anew(words: list[str]) -> None:
    "Predict in a new process, and look at what it says"
    run = subprocess.run([BIN/words[0], *words[1:]], capture_output=True, text=True, check=False)
    print(run.stdout + run.stderr, end='')
    if run.returncode: raise SystemExit(f'{words[0]} failed')
    rows = [line.split() for line in run.stdout.splitlines()]
    if len(rows) != len(list(Path('new').iterdir())) or not all(0 <= float(row[2]) <= 1 for row in rows):
        raise SystemExit('fsc_classify should print file, label and probability of each image')
    if run.stderr: raise SystemExit('fsc_classify should have nothing to complain of')


def serve_once(words: list[str]) -> None:
    "Start the web page, ask for it, and stop it"
    with subprocess.Popen([BIN/words[0], *words[1:]], stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().strip()
            with urllib.request.urlopen(address, timeout=60) as page: html = page.read().decode()
        finally: server.terminate()
    if 'place0' not in html: raise SystemExit('the page does not show the classes of the examples')
    print(f'{address} answered with a page of {len(html)} characters')


SPECIAL = {'fsc_classify': classify_anew, 'fsc_serve': serve_once}


def run_document(document: Path, names: dict[str, Any]) -> None:
    "Every block of a document, in order; its python blocks share `names`"
    for language, text in blocks(document):
        if language == 'python':
            with timed(f'{document.name}: ' + text.strip().splitlines()[0]):
                exec(compile(smaller(text), f'{document.name}: {text[:40]!r}', 'exec'), names)
            continue
        for words in commands(text):
            with timed(shlex.join(words)):
                if words[0] in SPECIAL: SPECIAL[words[0]](words)
                else: forked(lambda words=words: run_command(words))


def main() -> None:
    import matplotlib
    import timm
    import torch
    matplotlib.use('Agg')
    torch.set_num_threads(1)
    import fsc_fastai.all  # noqa: F401  forked commands find it imported

    from .images import write_all
    start = time.perf_counter()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix='fsc_tour_')).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()): raise SystemExit(f'{folder} is not empty: the tour needs a new folder')
    os.chdir(folder)
    with timed(f'folders of images in {folder}'): write_all(folder)
    torch.save(timm.create_model('test_vit').state_dict(), 'backbone.pth')
    for document in DOCUMENTS: run_document(document, {'__name__': 'tour'})
    print(f'\nThe tour is complete: {time.perf_counter() - start:.0f} s')


if __name__ == '__main__': main()
