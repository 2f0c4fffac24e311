"""README, recipes and CONTRIBUTING name what exists, and the tour runs all of it.

The code itself is run by `make tour`; here is what can be seen without running it.
"""
import ast
import importlib
import inspect
import re
import shlex
from configparser import ConfigParser
from pathlib import Path

import pytest

import fsc_fastai.all
from tests.test_notebooks import unknown_names
from tour.__main__ import DOCUMENTS, OPTIONS, SMALLER, blocks, commands, smaller

ROOT = Path(__file__).parents[1]
PAGES = [*DOCUMENTS, ROOT/'CONTRIBUTING.md', ROOT/'CHANGELOG.md', *sorted((ROOT/'docs').rglob('*.md'))]
SNIPPETS = [(document.name, text) for document in DOCUMENTS for language, text in blocks(document) if language == 'python']
LINES = [line for document in DOCUMENTS for language, text in blocks(document) if language == 'bash' for line in commands(text)]


def settings() -> dict:
    parser = ConfigParser(delimiters=['='])
    parser.read(ROOT/'settings.ini', encoding='utf-8')
    return dict(parser['DEFAULT'])


def scripts() -> dict[str, str]: return dict(line.split('=') for line in settings()['console_scripts'].split())


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: path.name)
def test_names_of_the_snippets_exist(document):
    "A renamed function of the library leaves no snippet behind"
    assert not unknown_names('\n'.join(text for name, text in SNIPPETS if name == document.name))


def test_the_glossary_names_what_exists():
    text = (ROOT/'docs'/'glossary.md').read_text(encoding='utf-8')
    names = re.findall(r"`([A-Z]\w+)(?:\(\))?`", text)
    assert len(names) > 5 and not [o for o in names if not hasattr(fsc_fastai.all, o)]
    linked = [(ROOT/o).read_text(encoding='utf-8') for o in ('README.md', 'docs/index.md')]
    assert 'docs/glossary.md' in linked[0] and '\nglossary\n' in linked[1]


def test_three_lines_are_three():
    lines = [line for line in SNIPPETS[0][1].splitlines() if line and not line.startswith('from')]
    assert len(lines) == 3 and 'fine_tune' in lines[2]


@pytest.mark.parametrize('pattern', SMALLER)
def test_what_makes_the_tour_small_still_fits_something(pattern):
    assert any(re.search(pattern, text) for _, text in SNIPPETS), f'no snippet has {pattern}: take it out of the tour'


def test_the_tour_leaves_nothing_large():
    for name, text in SNIPPETS:
        code = smaller(text)
        assert 'resnet10' not in code and not re.search(r'untar_\w+\(\)|(fine_tune|fit_one_cycle)\(\d\d', code), (name, code)
        ast.parse(code)


def test_every_command_is_shown_and_has_such_options():
    "A renamed option leaves no line behind; `fsc_demo` is `make demo`"
    assert {words[0] for words in LINES} | {'fsc_demo'} == set(scripts()) and set(OPTIONS) <= set(scripts())
    for words in LINES:
        module, name = scripts()[words[0]].split(':')
        known = inspect.signature(inspect.unwrap(getattr(importlib.import_module(module), name))).parameters
        given = [word[2:].replace('-', '_') for word in words if word.startswith('--')]
        assert set(given) <= set(known), f'{shlex.join(words)}: {words[0]} has {", ".join(known)}'


def test_a_command_is_in_a_file_of_its_name():
    for name, place in scripts().items():
        module, function = place.split(':')
        assert function == name and module.removeprefix('fsc_fastai.commands.') in (name, 'serve'), place
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.stem)
def test_links_and_pictures_are_there(page):
    text = re.sub(r'```.*?```', '', page.read_text(encoding='utf-8'), flags=re.S)
    targets = [target.split('#')[0] for target in re.findall(r'\]\(([^)\s]+)\)', text) if not target.startswith('http')]
    assert not [target for target in targets if target and not (page.parent/target).exists()]


def test_make_targets_that_are_named_exist():
    made = set(re.findall(r'^([\w-]+):', (ROOT/'Makefile').read_text(), re.M))
    for page in PAGES: assert set(re.findall(r'(?:^|`)make ([\w-]+)', page.read_text(encoding='utf-8'), re.M)) <= made, page


def test_what_shows_a_promise_exists():
    rows = (ROOT/'docs'/'promises.md').read_text(encoding='utf-8').split('|---|---|')[1].split('\n| ')[1:]
    for row in rows:
        commands = re.findall(r'`((?:make|pytest|fsc_\w+) [^`]+)`', row)
        assert commands, row
        paths = [word for command in commands for word in command.split() if word.startswith('tests/')]
        assert not [o for o in paths if not (ROOT/o).exists()], row


def test_places_that_contributing_names_exist():
    "Files, folders and names in the table of where things go"
    lines = (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8').splitlines()
    rows = [line.split('|')[1:-1] for line in lines if line.startswith('| a')]
    wanted = ('a method, a faster head, a backbone, a relevance rule, a layer or operation, an explainer, a domain, '
              'an adaptation, a callback, a captured callback, a test for a GPU, a training method, a command')
    assert [row[0].strip() for row in rows] == wanted.split(', ')
    for row in rows:
        for code in re.findall(r'`([^`]+)`', '|'.join(row)):
            if '/' in code: assert (ROOT/code).exists(), f'{row[0]}: {code}'
            elif code.endswith('.ini'): assert (ROOT/code).exists()
            elif re.fullmatch(r'@?\w+', code): assert _is_known(code.lstrip('@')), f'{row[0]}: {code}'


def _is_known(name: str) -> bool:
    "Is it a name that something in the package or the tests defines, or a setting?"
    sources = [path.read_text(encoding='utf-8') for folder in ('fsc_fastai', 'tests') for path in (ROOT/folder).rglob('*.py')]
    defined = re.compile(rf'\b(def|class) {name}\b|^{name}\b.*=|import .*\b{name}\b', re.M)
    return name in settings() or any(defined.search(source) for source in sources)
