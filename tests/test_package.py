"The package as a whole: its version, its public names, and which way its imports run"
import ast
import builtins
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections import defaultdict
from configparser import ConfigParser
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import fsc_fastai
from fsc_fastai.adapt import LoRA
from fsc_fastai.learner import FSCLearner
from tests.deploy.toys import classifier, examples
from tests.ranks import FORK, in_child

PACKAGE = Path(fsc_fastai.__file__).parent
MODULES = sorted('.'.join(p.relative_to(PACKAGE.parent).with_suffix('').parts) for p in PACKAGE.rglob('*.py'))
# Rooms in the order in which they may import: each only from those before it
ROOMS = ('quietly', 'pixels', 'extras', 'answers', 'light', 'tensors', 'as_built', 'files', 'bars', 'signatures', 'briefly',
         'nearest', 'drawing', 'kernels', 'data', 'encode', 'methods', 'explain', 'adapt', 'callback', 'learner', 'deploy',
         'reproduce', 'commands', 'all')


def test_version_is_that_of_settings():
    parser = ConfigParser(delimiters=['='])
    parser.read(PACKAGE.parent/'settings.ini')
    assert fsc_fastai.__version__ == parser['DEFAULT']['version']


def test_what_cites_the_library_names_its_version_and_licence():
    cited = yaml.safe_load((PACKAGE.parent/'CITATION.cff').read_text(encoding='utf-8'))
    assert (cited['title'], cited['version']) == ('fsc_fastai', fsc_fastai.__version__) and cited['license'] == 'Apache-2.0'
    assert {'cff-version', 'message', 'authors'} <= cited.keys(), 'what the format asks for'


# What fastai and torch call, and document: events of callbacks and metrics, parts of loaders, transforms and modules
HOOKS = re.compile(r'(before|after|on)_\w+|(end|start)_epoch|(load_)?state_dict|forward|reset|accumulate|name|value|extra_repr'
                   r'|encodes|decodes|setups|get_idxs|create_batches|new|n_inp|epoch|device|open')


@pytest.mark.parametrize('module', MODULES)
def test_public_names_and_methods_exist_and_are_documented(module):
    found = importlib.import_module(module)
    assert found.__doc__ or module.endswith('__main__'), f'{module} does not say what it is'
    for name in getattr(found, '__all__', []):
        public = getattr(found, name)
        ours = getattr(public, '__module__', '').startswith('fsc_fastai')
        if callable(public) and ours: assert public.__doc__, f'{module}.{name}'
        if not inspect.isclass(public) or public.__module__ != module: continue
        for key, member in vars(public).items():
            f = getattr(member, '__func__', getattr(member, 'fget', member))
            if key[0] == '_' or not inspect.isfunction(f) or HOOKS.fullmatch(key): continue
            assert f.__doc__, f'{module}.{name}.{key}'


def _imports(module):
    "Modules of the package that a module's import statements name"
    path = PACKAGE.parent/(module.replace('.', '/') + '.py')
    package = module.rsplit('.', 1)[0] if path.exists() else module
    for node in ast.walk(ast.parse((path if path.exists() else path.with_suffix('')/'__init__.py').read_text(encoding='utf-8'))):
        if not isinstance(node, ast.ImportFrom): continue
        base = '.'.join(package.split('.')[:len(package.split('.')) - node.level + 1]) + '.' if node.level else ''
        for alias in node.names:
            named = f'{base}{node.module or ""}'.rstrip('.')
            found = f'{named}.{alias.name}' if f'{named}.{alias.name}' in MODULES else named
            if found.startswith('fsc_fastai.'): yield found


@pytest.mark.parametrize('module', [m for m in MODULES if m.count('.') and not m.endswith('__init__')])
def test_imports_run_one_way(module):
    room = ROOMS.index(module.split('.')[1])
    for other in _imports(module):
        assert ROOMS.index(other.split('.')[1]) <= room, f'{module} imports {other}'


def test_no_two_files_import_each_other():
    "Neither at once nor by way of others, and not behind TYPE_CHECKING; the face of a folder imports what is in it"
    edges = {m: {o for o in _imports(m) if o in MODULES} for m in MODULES if not m.endswith('__init__')}
    try: TopologicalSorter(edges).prepare()
    except CycleError as e: pytest.fail(' → '.join(e.args[1]))


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_the_library_logs_and_the_commands_print(path):
    "`plain_rows` is a way to print, `python -m fsc_fastai.light` a command"
    calls = {getattr(o.func, 'id', '') for o in ast.walk(ast.parse(path.read_text())) if isinstance(o, ast.Call)}
    place = path.relative_to(PACKAGE).as_posix()
    assert 'print' not in calls or place.startswith('commands/') or place in ('learner/progress.py', 'light.py')


def test_all_replaces_nothing_of_fastai():
    "`from fsc_fastai.all import *` adds names to those of `fastai.vision.all`, and means the same by all others"
    fastai, ours = (vars(importlib.import_module(name)) for name in ('fastai.vision.all', 'fsc_fastai.all'))
    shadowed = [name for name in ours.keys() & fastai.keys() if name[:2] != '__' and ours[name] is not fastai[name]]
    builtin = [name for name in ours.keys() - fastai.keys() if hasattr(builtins, name) and name[:2] != '__']
    assert not shadowed and not builtin


def test_whoever_has_a_learner_has_its_methods():
    "Not those alone who import the files that the methods are in"
    code = """if True:
        from fsc_fastai.learner import FSCLearner
        from fsc_fastai.deploy.classifier import FewShotClassifier
        learner = 'evaluate confusion accuracy_by_class explain feature_statistics set_support classifier predict distrib_ctx'
        assert all(name in vars(FSCLearner) for name in learner.split())
        assert all(name in vars(FewShotClassifier) for name in 'explain calibrate to_onnx'.split())"""
    subprocess.run([sys.executable, '-c', code], check=True, env=os.environ | {'PYTHONPATH': str(PACKAGE.parent)})


@cache
def owners():
    "By name of a module: the packages that installed it. (`packages_distributions` of Python 3.10 knows few of them)"
    found = defaultdict(list)
    for package in metadata.distributions():
        for name in {file.parts[0].removesuffix('.py') for file in package.files or ()}: found[name].append(package.name)
    return found


def imported(path):
    "The top-level names of other packages that a file imports, in its functions too"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import): yield from (alias.name.split('.')[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split('.')[0]


def distributions(key):
    "Names of the packages that a line of settings.ini asks for"
    parser = ConfigParser(delimiters=['='])
    parser.read(PACKAGE.parent/'settings.ini')
    return {re.match(r'[\w-]+', o)[0].lower() for o in parser['DEFAULT'][key].split()}


OF_EXTRAS = {'commands/serve/': 'serve', 'deploy/onnx.py': 'onnx', 'light.py': 'onnx', 'callback/rank_trainer.py': 'distributed',
             'adapt/lora.py': 'lora'}
"Files and folders that import what an extra installs"


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_settings_name_what_a_file_imports(path):
    extra = next((o for start, o in OF_EXTRAS.items() if path.relative_to(PACKAGE).as_posix().startswith(start)), None)
    allowed = distributions('requirements') | (distributions(f'{extra}_requirements') if extra else set())
    for name in set(imported(path)) - sys.stdlib_module_names:
        assert {o.lower() for o in owners()[name]} & allowed, f'{name}, of {owners()[name]}'


def test_settings_name_nothing_that_no_file_imports():
    used = {o.lower() for path in PACKAGE.rglob('*.py') for name in imported(path) for o in owners().get(name, ())}
    named = distributions('requirements').union(*(distributions(f'{extra}_requirements') for extra in OF_EXTRAS.values()))
    assert not named - used


USES = {'serve': lambda: importlib.import_module('fsc_fastai.commands.serve'),
        'distributed': lambda: FSCLearner.to_distributed(None), 'lora': lambda: LoRA().trainable(None),
        'onnx': lambda: classifier().fit(*examples()).to_onnx('nowhere')}


@pytest.mark.parametrize('extra', sorted(set(OF_EXTRAS.values())))
def test_a_missing_extra_is_named(extra):
    "In a process where nothing of the extra can be imported any more (fastprogress brings some of it)"
    place = next(PACKAGE/start for start, o in OF_EXTRAS.items() if o == extra)
    files = place.rglob('*.py') if place.is_dir() else [place]
    missing = {name for file in files for name in imported(file) if {o.lower() for o in owners().get(name, ())}
               & (distributions(f'{extra}_requirements') - distributions('requirements'))}
    ours = '.'.join(place.relative_to(PACKAGE.parent).with_suffix('').parts)  # other tests have imported it
    assert missing

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.split('.')[0] in missing: raise ModuleNotFoundError(f'No module named {name!r}', name=name)

    def use(told):
        for name in [*sys.modules]:
            if name.split('.')[0] in missing or name.startswith(ours): del sys.modules[name]
        sys.meta_path.insert(0, Missing())
        try: USES[extra]()
        except ImportError as e: told.put(str(e))
        else: told.put('')
    told = FORK.SimpleQueue()
    assert in_child(use, told) == 0 and f"pip install 'fsc_fastai[{extra}]'" in told.get()
