"Docstrings and argument comments of the package as reStructuredText, for the API reference"
from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable
from functools import cache
from itertools import groupby
from typing import Any

from fastcore.docments import docments

import fsc_fastai
from fsc_fastai.learner.core import FSCLearner

__all__ = ['modules', 'public_names', 'reference_docstring', 'skip_member']


def modules() -> list[str]:
    "Every module of the package that has public names of its own"
    names = (m.name for m in pkgutil.walk_packages(fsc_fastai.__path__, 'fsc_fastai.'))
    return sorted(name for name in names if public_names(name))


@cache
def public_names(module: str) -> tuple[str, ...]:
    "What a module makes public and defines itself"
    found = importlib.import_module(module)
    own = (name for name in getattr(found, '__all__', ()) if getattr(getattr(found, name), '__module__', module) == module)
    return tuple(own)


@cache
def targets() -> dict[str, str]:
    "Where the reference describes a name: functions and classes by their own, methods of the learner as `learn.name`"
    found = {name: f'{module}.{name}' for module in modules() for name in public_names(module)
             if callable(getattr(importlib.import_module(module), name))}
    own = (name for name in vars(FSCLearner) if name[0] != '_' and inspect.getdoc(getattr(FSCLearner, name)))
    return found | {f'learn.{name}': f'{FSCLearner.__module__}.FSCLearner.{name}' for name in own}


def _mark_up(text: str) -> str:
    "Backticks as a link where they hold a name of the reference, else as code"
    def marked(m: re.Match) -> str:
        code = ' '.join(m[1].split())
        target = targets().get(code.removesuffix('()'))
        linked = f':py:obj:`{code} <{target}>`' if target else f'``{code}``'
        return linked + (r'\ ' if m[2] else '') # a letter may not touch the end of a code
    return re.sub(r'(?<!`)`([^`]+)`(?!`)(?=(\w)?)', marked, text.replace('\\', '\\\\')).replace('*', '\\*').replace('|', '\\|')


def _code_block(lines: list[str]) -> list[str]:
    "Indented lines as code, coloured where it is Python"
    try: compile(textwrap.dedent('\n'.join(lines)), 'docstring', 'exec')
    except SyntaxError: return ['.. code-block:: text', '', *lines]
    return ['.. code-block:: python', '', *lines]


def _paragraphs(lines: list[str]) -> list[str]:
    "Text marked up, indented paragraphs as code"
    out: list[str] = []
    for empty, group in groupby(lines, lambda line: not line):
        paragraph = list(group)
        if empty or paragraph[0].startswith('>>>'): out += paragraph
        elif paragraph[0].startswith('    '): out += _code_block(paragraph)
        else: out += _mark_up('\n'.join(paragraph)).splitlines()
    return out


def _arguments(obj: Callable) -> list[str]:
    "A field for every argument with a comment, where the arguments are of this package"
    if not getattr(obj, '__module__', None) or not obj.__module__.startswith('fsc_fastai'): return []
    try: helped = docments(inspect.unwrap(obj), full=True, args_kwargs=True)
    except (TypeError, ValueError, OSError): return []
    return [f':param {name}: {_mark_up(" ".join(help.docment.split()))}' for name, help in helped.items()
            if name != 'return' and help.docment]


def reference_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    "Sphinx's `autodoc-process-docstring`: mark up a docstring in place, and append its arguments"
    described = obj.__init__ if inspect.isclass(obj) else obj
    arguments = _arguments(described) if what in ('class', 'function', 'method', 'exception') else []
    lines[:] = [*_paragraphs(lines), '', *arguments]


def skip_member(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    "Sphinx's `autodoc-skip-member`: the type-dispatched methods of transforms are fastai's objects"
    return True if name in ('encodes', 'decodes') else None
