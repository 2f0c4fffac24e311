"Explanation-guided training in fastai's loop"
import copy
import pickle

import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.schedule import lr_find  # noqa: F401  a method of Learner
from fastai.data.core import DataLoaders
from fastai.learner import Learner, load_learner
from fastai.optimizer import SGD
from torch import nn
from torch.testing import assert_close

from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.data.episode import EpisodeLabel
from fsc_fastai.explain import LRP, GradientXInput, IntegratedGradients, relevance_weights
from fsc_fastai.methods import FewShotModel
from fsc_fastai.methods.relation import RelationModule
from tests.learners import hue_learner, silent, weights

from ...methods.toys import METHODS, feature_episode, feature_model

EXPLAINERS = {'lrp': LRP(), 'engine': LRP(alpha=2.), 'gradient': GradientXInput(), 'integrated': IntegratedGradients(2),
              'callable': lambda model, f_p: torch.randn_like(getattr(f_p, 'features', f_p))}


class Episodes:
    "A few episodes of feature maps, always the same"
    n_inp, device = 3, torch.device('cpu')
    def __init__(self, n=3, labels=EpisodeLabel, **kwargs):
        self.episodes, self.dataset = [feature_episode(seed=i, **kwargs) for i in range(n)], self
        if labels is torch.Tensor: self.episodes = [[x.as_subclass(torch.Tensor) for x in e] for e in self.episodes]
    def __len__(self): return len(self.episodes)
    def __iter__(self): return iter(self.episodes)


class Scaled(nn.Module):
    "An encoder with something to learn"
    def __init__(self, size=5): super().__init__(); self.scale = nn.Parameter(torch.ones(6, 1, 1))
    def forward(self, x): return x * self.scale


def few_shot(method, **kwargs):
    model = feature_model(method, n_classes=5 if method == 'can' else 0, **kwargs)
    model.encoder.body = Scaled()
    return model.train()


def learner(model, cbs=(), episodes=None, loss_func=None, **kwargs):
    dls = DataLoaders(episodes or Episodes(), Episodes(1))
    learn = Learner(dls, model, loss_func or model.default_loss(), opt_func=SGD, lr=.01, cbs=cbs, **kwargs)
    return silent(learn)


class Spy(Callback):
    "Keeps the loss of each step and the gradients that it led to"
    order = 90
    def __init__(self): self.seen = []
    def before_backward(self): self.seen.append(self.learn.loss.detach().clone())


def untouched(model):
    "Is nothing of the callback on the model?"
    hooks = model._forward_hooks or model._processed_hooks
    return not {'classify', 'training_output', 'forward'} & set(model.__dict__) and not hooks


# Steps 1 to 4

@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('over', ['channels', 'map'])
def test_one_step_by_hand(method, over):
    "The gradient of ξ·L(y, p) + λ·L(y, p_lrp), with constant weights"
    support, y, query, query_y = feature_episode(seed=0)
    model, by_hand = few_shot(method), few_shot(method)
    loss_func = model.default_loss()
    f_p = by_hand.process(by_hand.encode(support), y, by_hand.encode(query))
    plain = by_hand.training_output(f_p)
    w = relevance_weights(LRP()(by_hand, f_p), over)
    guided = by_hand.training_output(w * f_p)
    if isinstance(plain, tuple): guided = (guided[0], *plain[1:])
    loss = .3*loss_func(plain, query_y) + .7*loss_func(guided, query_y)
    loss.backward()
    spy = Spy()
    learn = learner(model, [LRPGuidedCallback(.3, .7, over=over), spy], Episodes(1))
    before = weights(learn)
    learn.fit(1, 1., wd=0.)
    assert_close(spy.seen[0], loss.detach())
    after = weights(learn)
    for name, p in by_hand.named_parameters():
        assert_close(after[name], before[name] - (0. if p.grad is None else p.grad), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('explainer', EXPLAINERS)
def test_every_model_with_every_explainer(method, explainer):
    model = few_shot(method)
    cb = LRPGuidedCallback(explainer=EXPLAINERS[explainer])
    learn = learner(model, cb)
    before = weights(learn)
    learn.fit(1)
    assert len(cb.losses) == 3 and all(loss.isfinite() for pair in cb.losses for loss in pair)
    assert any(not torch.equal(a, b) for a, b in zip(before.values(), weights(learn).values(), strict=True))
    assert untouched(model)


@pytest.mark.parametrize('method,n_shot,expected', [('relation', 1, (1, .5)), ('relation', 2, (1, 1)), ('gnn', 1, (1, .5)),
                                                    ('can', 1, (0, 1)), ('can', 2, (0, 1)), ('proto', 2, (1, 1))])
def test_published_weights(method, n_shot, expected):
    spy, cb = Spy(), LRPGuidedCallback()
    learner(few_shot(method), [cb, spy], Episodes(2, n_shot=n_shot)).fit(1)
    for loss, (plain, guided) in zip(spy.seen, cb.losses, strict=True):
        assert_close(loss, expected[0]*plain + expected[1]*guided)


def test_given_weights_count_one_by_one():
    spy, cb = Spy(), LRPGuidedCallback(lam=.25)
    learner(few_shot('relation'), [cb, spy], Episodes(1)).fit(1)
    assert_close(spy.seen[0], cb.losses[0][0] + .25*cb.losses[0][1])


def test_without_guidance_it_is_plain_training():
    guided, plain = learner(few_shot('relation'), LRPGuidedCallback(1., 0.)), learner(few_shot('relation'))
    for learn in (guided, plain): learn.fit(2)
    assert_close(weights(guided), weights(plain))


def test_the_first_pass_is_not_run_again(monkeypatch):
    forward, calls = RelationModule.forward, []
    monkeypatch.setattr(RelationModule, 'forward', lambda *args: calls.append(1) or forward(*args))
    learner(few_shot('relation'), LRPGuidedCallback(), Episodes(1)).fit(1)
    assert len(calls) == 2 + 1  # the first and the second pass, and validation


# The recorder

def test_both_losses_are_columns():
    learn = learner(few_shot('relation'), cb := LRPGuidedCallback(), metrics=[lambda scores, y: 3.])
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
    learn = learner(few_shot('relation'), LRPGuidedCallback(explainer=lambda m, f_p: explained.append(1)))
    learn.validate()
    assert not explained and untouched(learn.model)


def test_not_under_lr_find(tmp_path):
    explained = []
    learn = learner(few_shot('relation'), LRPGuidedCallback(explainer=lambda m, f_p: explained.append(1)), path=tmp_path)
    learn.lr_find(num_it=4, show_plot=False)
    assert not explained and not learn.metrics
    with pytest.raises(Exception, match='explainer|NoneType'): learn.fit(1)  # and on again afterwards


# With other callbacks: the matrix has more of them

def test_a_batch_that_another_callback_cancels():
    class Cancel(Callback):
        order = 20
        def before_batch(self): raise CancelBatchException
    learn = learner(few_shot('relation'), [LRPGuidedCallback(), Cancel()])
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
    model = few_shot('relation')
    kwargs, mend = failing(place, model)
    learn = learner(model, cb := LRPGuidedCallback(**kwargs), path=tmp_path)
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
    learn = learner(few_shot('relation'), cb := LRPGuidedCallback(), loss_func=loss_func)
    with pytest.raises(RuntimeError, match='half-way'): learn.fit(1)
    assert untouched(learn.model)
    learn.fit(1)
    assert len(cb.losses) == 3


# Models and losses of a user

class Own(FewShotModel):
    "A classifier of one's own, on feature maps"
    def __init__(self): super().__init__(nn.Identity()); self.fc = nn.Linear(12, 1)
    def process(self, support, y, query):
        prototypes = torch.stack([support[y == c].mean((0, 2, 3)) for c in range(5)])
        query = query.mean((2, 3))
        return torch.cat([prototypes[None].expand(len(query), -1, -1), query[:, None].expand(-1, 5, -1)], 2)
    def classify(self, f_p): return self.fc(f_p)[..., 0]


def test_a_hook_sees_the_processed_features_and_nothing_of_it_is_left():
    "In every pass, until its handle is removed; on the methods as they are, none of which is replaced meanwhile"
    model, (support, y, query, _), seen = few_shot('proto'), feature_episode(), []
    handle = model.register_processed_hook(lambda m, f_p: seen.append((m, f_p)))
    assert not {'classify', 'training_output'} & set(vars(model))
    scores = model(support, y, query)
    assert seen[0][0] is model and torch.equal(model.classify(seen[0][1]), scores)
    handle.remove()
    model(support, y, query)
    assert len(seen) == 1 and untouched(model) and untouched(copy.deepcopy(model))


def test_a_model_and_a_loss_of_ones_own():
    loss_func = lambda scores, y: nn.functional.multi_margin_loss(scores, y)
    learn = learner(Own(), cb := LRPGuidedCallback(), Episodes(labels=torch.Tensor), loss_func)
    learn.dls.valid.episodes = learn.dls.train.episodes
    learn.fit(1)
    assert len(cb.losses) == 3 and untouched(learn.model)


def test_a_compiled_encoder_is_guided_as_a_plain_one():
    def trained(compile_):
        torch.manual_seed(0)
        learn = learner(few_shot('relation'), LRPGuidedCallback())
        if compile_: learn.model.encoder.compile(backend='eager')
        learn.fit(1)
        return learn.lrp_guided.losses
    for plain, compiled in zip(trained(False), trained(True), strict=True): torch.testing.assert_close(compiled, plain)


def test_what_cannot_be_guided_says_why():
    class NoClassify(nn.Linear): default_loss = nn.CrossEntropyLoss
    learn = learner(NoClassify(2, 2), LRPGuidedCallback())
    with pytest.raises(TypeError, match=r'classify\(f_p\)`, found NoClassify'): learn.fit(1)
    class Elsewhere(Own):
        def forward(self, *xb): return self.fc(self.process(*xb))[..., 0]
    learn = learner(Elsewhere(), LRPGuidedCallback(), Episodes(labels=torch.Tensor), nn.CrossEntropyLoss())
    with pytest.raises(TypeError, match='Elsewhere did not go through `forward_head`'): learn.fit(1)
    model = few_shot('relation')
    model.compile()
    with pytest.raises(ValueError, match='compiled.* Its encoder alone may be'): learner(model, LRPGuidedCallback()).fit(1)
    with pytest.raises(ValueError, match="over='pixels'"): LRPGuidedCallback(over='pixels')
