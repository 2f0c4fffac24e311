"Explanation-guided training in fastai's loop"
import copy
import pickle

import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.schedule import lr_find  # noqa: F401  a method of Learner
from fastai.learner import load_learner
from fastai.torch_core import trainable_params
from torch import nn
from torch.testing import assert_close

from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.explain import LRP, GradientXInput, IntegratedGradients, relevance_weights
from fsc_fastai.methods import FewShotModel
from fsc_fastai.methods.relation import RelationModule
from tests.learners import hue_learner, weights

from ...methods.toys import METHODS
from ..episodes import N_CLASSES, Episodes, StepLosses, build_model, learner

EXPLAINERS = {'lrp': LRP(), 'engine': LRP(alpha=2.), 'gradient': GradientXInput(), 'integrated': IntegratedGradients(2),
              'callable': lambda model, f_p: torch.randn_like(getattr(f_p, 'features', f_p))}


def few_shot(method='relation', **kwargs):
    "A model to train, a CrossAttentionNet with a classifier of all training classes"
    return build_model(method=method, **({'n_classes': N_CLASSES} if method == 'can' else {}) | kwargs).train()


def untouched(model):
    "Is nothing of the callback on the model?"
    hooks = model._forward_hooks or model._processed_hooks
    return not {'classify', 'training_output', 'forward'} & set(model.__dict__) and not hooks


# Steps 1 to 4

@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('over', ['channels', 'map'])
def test_one_step_by_hand(method, over):
    "The gradient of ξ·L(y, p) + λ·L(y, p_lrp), with constant weights"
    support, y, query, query_y = Episodes().episode(0)
    by_hand = few_shot(method)
    loss_func = by_hand.default_loss()
    f = by_hand.encode(torch.cat([support, query]))
    f_p = by_hand.process(f[:len(support)], y, f[len(support):])
    plain = by_hand.training_output(f_p)
    w = relevance_weights(LRP()(by_hand, f_p), over)
    guided = by_hand.training_output(w * f_p)
    if isinstance(plain, tuple): guided = (guided[0], *plain[1:])
    loss = .3*loss_func(plain, query_y) + .7*loss_func(guided, query_y)
    loss.backward()
    learn = learner([LRPGuidedCallback(.3, .7, over=over), losses := StepLosses()], 1, few_shot(method))
    before = weights(learn)
    learn.fit(1, 1., wd=0.)
    assert_close(losses.seen[0], loss.detach())
    after = weights(learn)
    for name, p in by_hand.named_parameters():
        assert_close(after[name], before[name] - (0. if p.grad is None else p.grad), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('explainer', EXPLAINERS)
def test_every_model_with_every_explainer(method, explainer):
    learn = learner([cb := LRPGuidedCallback(explainer=EXPLAINERS[explainer])], model=few_shot(method))
    before = weights(learn)
    learn.fit(1)
    assert len(cb.losses) == 3 and all(loss.isfinite() for pair in cb.losses for loss in pair)
    assert any(not torch.equal(a, b) for a, b in zip(before.values(), weights(learn).values(), strict=True))
    assert untouched(learn.model)


@pytest.mark.parametrize('method,n_shot,expected', [('relation', 1, (1, .5)), ('relation', 2, (1, 1)), ('gnn', 1, (1, .5)),
                                                    ('can', 1, (0, 1)), ('can', 2, (0, 1)), ('proto', 2, (1, 1))])
def test_published_weights(method, n_shot, expected):
    learner([cb := LRPGuidedCallback(), losses := StepLosses()], 2, few_shot(method), n_shot=n_shot).fit(1)
    for loss, (plain, guided) in zip(losses.seen, cb.losses, strict=True):
        assert_close(loss, expected[0]*plain + expected[1]*guided, check_dtype=False)


def test_given_weights_count_one_by_one():
    learner([cb := LRPGuidedCallback(lam=.25), losses := StepLosses()], 1).fit(1)
    assert_close(losses.seen[0], cb.losses[0][0] + .25*cb.losses[0][1], check_dtype=False)


def test_without_guidance_it_is_plain_training():
    guided, plain = learner([LRPGuidedCallback(1., 0.)]), learner([])
    for learn in (guided, plain): learn.fit(2)
    assert_close(weights(guided), weights(plain))


def test_the_first_pass_is_not_run_again(monkeypatch):
    forward, calls = RelationModule.forward, []
    monkeypatch.setattr(RelationModule, 'forward', lambda *args: calls.append(1) or forward(*args))
    learner([LRPGuidedCallback()], 1).fit(1)
    assert len(calls) == 2 + 1  # the first and the second pass, and validation


# The recorder

def test_both_losses_are_columns():
    learn = learner([cb := LRPGuidedCallback()])
    learn.metrics = [lambda scores, y: 3.]
    learn.fit(2)
    names = learn.recorder.metric_names
    assert list(names[-3:]) == ['plain_loss', 'guided_loss', 'time'] and len(learn.metrics) == 1
    last = dict(zip(names[1:], learn.recorder.values[-1], strict=False))
    assert_close(last['plain_loss'], float(torch.stack([p for p, _ in cb.losses[3:]]).mean()))
    assert_close(last['guided_loss'], float(torch.stack([g for _, g in cb.losses[3:]]).mean()))
    learn.fit(1)
    assert len(cb.losses) == 3 and list(learn.recorder.metric_names[-3:]) == ['plain_loss', 'guided_loss', 'time']


# Where it is to do nothing

def test_not_in_validation():
    explained = []
    learn = learner([LRPGuidedCallback(explainer=lambda m, f_p: explained.append(1))])
    learn.validate()
    assert not explained and untouched(learn.model)


def test_not_under_lr_find(tmp_path):
    explained = []
    learn = learner([LRPGuidedCallback(explainer=lambda m, f_p: explained.append(1))], path=tmp_path)
    learn.lr_find(num_it=4, show_plot=False)
    assert not explained and not learn.metrics
    with pytest.raises(Exception, match='explainer|NoneType'): learn.fit(1)  # and on again afterwards


# With other callbacks: the matrix has more of them

def test_a_batch_that_another_callback_cancels():
    class Cancel(Callback):
        order = 20
        def before_batch(self): raise CancelBatchException
    learn = learner([LRPGuidedCallback(), Cancel()])
    learn.fit(1)
    assert untouched(learn.model)


def test_fine_tune_and_export(tmp_path):
    learn = hue_learner(tmp_path/'hues', cbs=LRPGuidedCallback())
    learn.fine_tune(1, pretrain_epochs=0)
    n_steps = len(learn.lrp_guided.losses)
    learn.get_preds()
    assert n_steps == len(learn.lrp_guided.losses) == len(learn.dls.train)
    learn.export('model.pkl')
    assert untouched(learn.model)
    loaded = load_learner(tmp_path/'model.pkl')
    assert untouched(loaded.model) and not loaded.lrp_guided.losses and not [m for m in loaded.metrics if 'loss' in m.name]
    assert len(pickle.dumps(loaded.lrp_guided.explainer)) < 5000


# Errors half-way

def failing(place, model):
    "Make `place` raise, and return what mends it"
    def fail(*args, **kwargs): raise RuntimeError('half-way')
    if place == 'explainer': return {'explainer': fail}, lambda cb: setattr(cb, 'explainer', LRP())
    if place == 'encode':
        hook = model.encoder.register_forward_pre_hook(fail)
        return {}, lambda cb: hook.remove()
    hook = model.relation.register_forward_hook(fail)
    return {}, lambda cb: hook.remove()


@pytest.mark.parametrize('place', ['encode', 'classify', 'explainer'])
def test_an_error_leaves_nothing_on_the_model(place, tmp_path):
    model = few_shot()
    kwargs, mend = failing(place, model)
    learn = learner([cb := LRPGuidedCallback(**kwargs)], model=model, path=tmp_path)
    with pytest.raises(RuntimeError, match='half-way'): learn.fit(1)
    assert untouched(model)
    mend(cb)
    learn.fit(1)
    assert len(cb.losses) == 3 and list(learn.recorder.metric_names).count('plain_loss') == 1 and not learn.metrics
    assert untouched(model) and not any(m._forward_hooks for m in model.modules())
    torch.save(model, tmp_path/'model.pt')
    saved = torch.load(tmp_path/'model.pt', weights_only=False).state_dict()
    assert saved.keys() == model.state_dict().keys() and all(torch.equal(v, saved[k]) for k, v in model.state_dict().items())


def test_an_error_in_the_second_pass_or_in_the_loss(tmp_path):
    calls = []
    def loss_func(scores, y):
        calls.append(1)
        if len(calls) == 2: raise RuntimeError('half-way')
        return nn.functional.cross_entropy(scores, y.as_subclass(torch.Tensor))
    learn = learner([cb := LRPGuidedCallback()])
    learn.loss_func = loss_func
    with pytest.raises(RuntimeError, match='half-way'): learn.fit(1)
    assert untouched(learn.model)
    learn.fit(1)
    assert len(cb.losses) == 3


# Models and losses of a user

class Own(FewShotModel):
    "A classifier of one's own, on the colours of images"
    def __init__(self): super().__init__(nn.Identity()); self.fc = nn.Linear(6, 1).double()
    def process(self, support, y, query):
        prototypes = torch.stack([support[y == c].mean((0, 2, 3)) for c in range(3)])
        query = query.mean((2, 3))
        return torch.cat([prototypes[None].expand(len(query), -1, -1), query[:, None].expand(-1, 3, -1)], 2)
    def classify(self, f_p): return self.fc(f_p)[..., 0]


def test_a_hook_sees_the_processed_features_and_nothing_of_it_is_left():
    "In every pass, until its handle is removed; on the methods as they are, none of which is replaced meanwhile"
    model, (support, y, query, _), seen = few_shot('proto'), Episodes().episode(0), []
    handle = model.register_processed_hook(lambda m, f_p: seen.append((m, f_p)))
    assert not {'classify', 'training_output'} & set(vars(model))
    scores = model(support, y, query)
    assert seen[0][0] is model and torch.equal(model.classify(seen[0][1]), scores)
    handle.remove()
    model(support, y, query)
    assert len(seen) == 1 and untouched(model) and untouched(copy.deepcopy(model))


def test_a_model_and_a_loss_of_ones_own():
    learn = learner([cb := LRPGuidedCallback()], model=Own(), labels=None)
    learn.loss_func, learn.dls.valid.labels = lambda scores, y: nn.functional.multi_margin_loss(scores, y), None
    learn.fit(1)
    assert len(cb.losses) == 3 and untouched(learn.model)


def test_a_compiled_encoder_is_guided_as_a_plain_one():
    def trained(compile_):
        learn = learner([LRPGuidedCallback()])
        if compile_: learn.model.encoder.compile(backend='eager')
        learn.fit(1)
        return learn.lrp_guided.losses
    for plain, compiled in zip(trained(False), trained(True), strict=True): torch.testing.assert_close(compiled, plain)


def test_what_cannot_be_guided_says_why():
    class NoClassify(nn.Linear): default_loss = nn.CrossEntropyLoss
    class Elsewhere(Own):
        def forward(self, *xb): return self.fc(self.process(*xb))[..., 0]
    compiled = few_shot()
    compiled.compile()
    for model, error, words in ((NoClassify(2, 2), TypeError, r'classify\(f_p\)`, found NoClassify'),
                                (Elsewhere(), TypeError, 'Elsewhere did not go through `forward_head`'),
                                (compiled, ValueError, 'compiled.* Its encoder alone may be')):
        learn = learner([LRPGuidedCallback()], model=model, labels=None)
        learn.loss_func, learn.splitter = nn.CrossEntropyLoss(), trainable_params
        with pytest.raises(error, match=words): learn.fit(1)
    with pytest.raises(ValueError, match="over='pixels'"): LRPGuidedCallback(over='pixels')
