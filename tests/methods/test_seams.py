"What a method says of itself, so that no other file asks which method it is"
import ast
from pathlib import Path

import pytest
import torch

import fsc_fastai
from fsc_fastai import methods
from fsc_fastai.methods import FewShotModel

from .toys import METHODS, feature_model, processed

PACKAGE = Path(fsc_fastai.__file__).parent
KINDS = {name for name, kind in vars(methods).items() if isinstance(kind, type) and kind is not FewShotModel} - {'Processed'}


def asked(path):
    "Methods, and kinds of their features, that a file asks `isinstance` of"
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return KINDS & {name.id for call in calls if getattr(call.func, 'id', '') in ('isinstance', 'issubclass')
                    for name in ast.walk(call.args[1]) if isinstance(name, ast.Name)}


def test_no_other_file_asks_which_method_it_is():
    "But a pass that is written for one method alone"
    files = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob('*.py') if p.parent.name != 'methods' and asked(p)}
    assert files == {'explain/closed_form.py', 'callback/guided/lrp_can.py'}


@pytest.mark.parametrize('method', METHODS)
def test_what_is_explained_holds_the_scores(method):
    model, f_p = processed(method)
    scores, explained = model.classify(f_p), model.explained_scores(f_p)
    assert explained.shape[-1] == scores.shape[1] and torch.isin(scores, explained).all()


def test_a_subclass_may_say_otherwise():
    "ξ, λ and the support that cannot grow are attributes, which a method of one's own overrides"
    assert feature_model('can').guidance[0] == (0., 1.) and feature_model('relation').guidance == ((1., .5), (1., 1.))
    assert not feature_model('gnn').transductive and feature_model('proto').transductive


@pytest.mark.parametrize('method', METHODS)
def test_classes_of_pairs(method):
    model, f_p = processed(method)
    if method in ('can', 'gnn'): assert f_p.of_class is None
    else: assert f_p.of_class.shape == (5, f_p.features.shape[1]) and (f_p.of_class.sum(0) == 1).all()
