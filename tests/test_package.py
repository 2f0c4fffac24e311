"The package as a whole: its version, its public names, and which way its imports run"
import ast
import importlib
import inspect
import re
from configparser import ConfigParser
from pathlib import Path

import pytest

import fsc_fastai

PACKAGE = Path(fsc_fastai.__file__).parent
MODULES = sorted('.'.join(p.relative_to(PACKAGE.parent).with_suffix('').parts) for p in PACKAGE.rglob('*.py'))
ABOVE = {'callback', 'learner', 'evaluate', 'explanation', 'statistics', 'pretrain', 'inference', 'reproduce', 'demo', 'cli',
         'all', 'serve', 'console', 'progress', 'results', 'metrics', 'transduction'}


def test_version_is_that_of_settings():
    parser = ConfigParser(delimiters=['='])
    parser.read(PACKAGE.parent/'settings.ini')
    assert fsc_fastai.__version__ == parser['DEFAULT']['version']


@pytest.mark.parametrize('module', MODULES)
def test_public_names_exist_and_are_documented(module):
    found = importlib.import_module(module)
    assert found.__doc__ or module.endswith('__main__'), f'{module} does not say what it is'
    for name in getattr(found, '__all__', []):
        public = getattr(found, name)
        ours = getattr(public, '__module__', '').startswith('fsc_fastai')
        if callable(public) and ours: assert public.__doc__, f'{module}.{name}'


# What fastai and torch call, and document: events of callbacks and metrics, parts of loaders, transforms and modules
HOOKS = re.compile(r'(before|after|on)_\w+|(end|start)_epoch|(load_)?state_dict|forward|reset|accumulate|name|value|extra_repr'
                   r'|encodes|decodes|setups|get_idxs|create_batches|new|n_inp|epoch|device|open')


@pytest.mark.parametrize('module', MODULES)
def test_public_methods_are_documented(module):
    found = importlib.import_module(module)
    for name in getattr(found, '__all__', []):
        cls = getattr(found, name)
        if not inspect.isclass(cls) or cls.__module__ != module: continue
        for key, member in vars(cls).items():
            f = getattr(member, '__func__', getattr(member, 'fget', member))
            if key[0] == '_' or not inspect.isfunction(f) or HOOKS.fullmatch(key): continue
            assert f.__doc__, f'{module}.{name}.{key}'


def test_data_models_and_explain_import_nothing_above_them():
    for room in ('data', 'models', 'explain'):
        for path in (PACKAGE/room).glob('*.py'):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.level >= 2 or (node.module or '').startswith('fsc_fastai')):
                    parts = set((node.module or '').split('.')) | {alias.name for alias in node.names if not node.module}
                    assert not parts & ABOVE, f'{path.name} imports {node.module}'


def test_callbacks_know_no_command_line():
    for path in (PACKAGE/'callback').glob('*.py'):
        assert 'cli' not in path.read_text().replace('click', ''), path.name


def test_all_brings_what_the_readme_uses():
    names = vars(importlib.import_module('fsc_fastai.all'))
    used = '''EpisodeDataLoaders untar_glyphs fsc_learner RelationNet LRPGuidedCallback EpisodeBlock ClassSplitter FewShotModel
              GradientXInput LFTCallback DataBlock parent_label FewShotClassifier load_learner'''
    for name in used.split():
        assert name in names, name
    assert hasattr(names['FSCLearner'], 'evaluate') and hasattr(names['FSCLearner'], 'explain')
