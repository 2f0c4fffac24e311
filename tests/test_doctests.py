"The examples in docstrings are true"
import doctest
import importlib

import pytest

from .test_package import MODULES, PACKAGE


def source(module: str) -> str:
    path = PACKAGE.parent.joinpath(*module.split('.'))
    return (path/'__init__.py' if path.is_dir() else path.with_suffix('.py')).read_text(encoding='utf-8')


EXAMPLES = [module for module in MODULES if not module.endswith('__init__') and '    >>> ' in source(module)]


@pytest.mark.parametrize('module', EXAMPLES)
def test_examples(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted and not result.failed
