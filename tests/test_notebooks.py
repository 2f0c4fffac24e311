"The notebooks are complete: executed in order, without errors, small, and with nothing of the machine that ran them"
from __future__ import annotations

import ast
import builtins
import re
from pathlib import Path

import nbformat
import pytest

import fsc_fastai.all

NOTEBOOKS = sorted((Path(__file__).parent.parent/'nbs').glob('*.ipynb'))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path: return request.param


@pytest.fixture
def code(path) -> list: return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == 'code']


def test_the_index_has_all_of_them():
    index = nbformat.read(NOTEBOOKS[0], as_version=4).cells[0].source
    assert NOTEBOOKS[0].name.startswith('00') and len(NOTEBOOKS) >= 6
    assert re.findall(r'\]\((\w+\.ipynb)\)', index) == [path.name for path in NOTEBOOKS[1:]]


def test_is_valid_and_small(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.stat().st_size < 600_000


def test_was_run_top_to_bottom(code):
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def test_shows_no_warning_error_or_path_of_the_machine(code):
    outputs = [o for cell in code for o in cell.outputs]
    assert not [o for o in outputs if o.output_type == 'error' or o.get('name') == 'stderr']
    texts = [o.get('text', '') + o.get('data', {}).get('text/plain', '') for o in outputs]
    assert not [text for text in texts if str(Path.home()) in text or '/tmp/' in text]


def test_uses_public_names_of_the_library_only(code):
    tree = ast.parse('\n'.join(cell.source for cell in code))
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not [name for name in attributes | names if name[0] == '_' and name[:2] != '__']


def unknown_names(code: str) -> set[str]:
    "Names that are used in code and neither defined, imported nor of `fsc_fastai.all`"
    nodes = list(ast.walk(ast.parse(code)))
    used = {o.id for o in nodes if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Load)}
    made = {o.id for o in nodes if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store)}
    made |= {o.name for o in nodes if isinstance(o, ast.FunctionDef | ast.ClassDef)}
    made |= {o.arg for o in nodes if isinstance(o, ast.arg)} | {o.name for o in nodes if isinstance(o, ast.ExceptHandler)}
    made |= {o.asname or o.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for o in node.names}
    return used - made - set(vars(fsc_fastai.all)) - set(vars(builtins))


def test_every_name_is_defined_or_imported(code):
    "A renamed function of the library leaves no notebook behind"
    assert not unknown_names('\n'.join(cell.source for cell in code))
