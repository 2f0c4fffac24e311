"FT and LFT in fastai's training loop"
import copy
import math
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelStepException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import Learner, load_learner
from fastai.optimizer import SGD
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from fsc_fastai.callback.accumulate import EpisodeAccumulation
from fsc_fastai.callback.lft import FTCallback, LFTCallback
from fsc_fastai.callback.lrp import LRPGuidedCallback
from fsc_fastai.callback.lrp_can import PublishedCANPass
from fsc_fastai.callback.resume import ResumeFit
from fsc_fastai.data.episode import Episode, EpisodeLabel
from fsc_fastai.explain.lrp import LRP
from fsc_fastai.explain.start import relevance_weights
from fsc_fastai.learner import FSCLearner, encoder_head_splitter
from fsc_fastai.models import create_encoder, create_fsc_model
from fsc_fastai.models.transformation import ft_layers
from tests.learners import hue_learner, hue_loaders, write_hues

N_CLASSES, SIZE = 6, 16


class Episodes:
    "Episodes of noise in double precision; episode k of an epoch is always the same"
    n_inp, device, vocab = 3, torch.device('cpu'), list(range(N_CLASSES))

    def __init__(self, n=3, seed=0, dtype=torch.float64, labels=EpisodeLabel):
        self.n, self.seed, self.dtype, self.labels, self.epoch, self.dataset = n, seed, dtype, labels, 0, self

    def episode(self, k):
        g = torch.Generator().manual_seed(1000*self.seed + k)
        classes = tuple(torch.randperm(N_CLASSES, generator=g)[:3].tolist())
        def part(n):
            y = torch.arange(3).repeat_interleave(n)
            return (torch.randn(3*n, 3, SIZE, SIZE, generator=g, dtype=self.dtype),
                    EpisodeLabel(y, classes=classes) if self.labels is EpisodeLabel else y)
        return Episode(*part(1), *part(2))

    def __len__(self): return self.n
    def __iter__(self): return map(self.episode, range(self.n))


def build_model(seed=0, method='relation', arch='conv4', dtype=torch.float64):
    torch.manual_seed(seed)
    return create_fsc_model(method, arch, n_way=3, img_size=SIZE).to(dtype)


def learner(cbs, n=3, model=None, lr=0.05, cls=Learner, path=None, **kwargs):
    "A silent learner that descends the plain gradient"
    model = build_model() if model is None else model
    dtype = next(model.parameters()).dtype
    dls = DataLoaders(Episodes(n, dtype=dtype, **kwargs), Episodes(1, seed=9, dtype=dtype), device='cpu')
    dls.n_inp, dls.vocab = 3, Episodes.vocab
    learn = cls(dls, model, loss_func=model.default_loss(), cbs=[*cbs, SingleLoss()], opt_func=partial(SGD, mom=0.), lr=lr,
                splitter=encoder_head_splitter, path=path)
    learn.remove_cb(learn.progress)
    learn.logger = lambda *args: None
    return learn


class SingleLoss(Callback):
    "fastai's Recorder averages in single precision"
    order = 90
    def after_loss(self): self.learn.loss = self.learn.loss.float()


class Seed(Callback):
    "The same noise in every run, of the transformations in step i of an epoch; `torch.manual_seed(seed + i)`"
    order, run_valid = 50, False
    def __init__(self, seed=5): self.seed = seed
    def before_batch(self): torch.manual_seed(self.seed + self.iter)


class FirstEpisode(Callback):
    "Every step has the same episode"
    def __init__(self, k=0): self.k = k
    def before_batch(self): self.learn.xb, self.learn.yb = self.dls.train.episode(self.k)[:3], self.dls.train.episode(self.k)[3:]


@pytest.fixture
def plain_descent(monkeypatch):
    "γ, β and the auxiliary classifier descend the plain gradient, so that their change is minus the gradient at lr=1"
    monkeypatch.setattr(torch.optim, 'Adam', torch.optim.SGD)


def lft(domains=None, **kwargs):
    "An LFTCallback on one domain"
    return LFTCallback([Episodes(seed=1)] if domains is None else domains, **({'ft_lr': 1., 'ft_wd': 0., 'aux': False} | kwargs))


def gammas(cb): return torch.cat([p.detach().flatten() for p in cb.ft_parameters])


def start(cb): return torch.cat([torch.full_like(p, v) for layer in cb.transformations.values()
                                 for v, p in zip((0.3, 0.5), layer.parameters(), strict=True)]).flatten().detach()


def weights(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}


def assert_same(a, b, **kwargs):
    assert list(a) == list(b)
    for k in a: torch.testing.assert_close(a[k], b[k], **kwargs)


# Algorithm 1, by hand ---------------------------------------------------------------------------------------------------------

def noisy_norms(model, params, eps):
    "Hooks that transform the output of every batch norm of conv4 by the formula, with given noise"
    def transform(norm, args, x, gamma, beta, e1, e2):
        view = lambda v: v[None, :, None, None]  # noqa: E731
        return (1 + view(e1*F.softplus(gamma, 100))) * x + view(e2*F.softplus(beta, 100))
    return [stage.norm.register_forward_hook(partial(transform, gamma=g, beta=b, e1=e1, e2=e2))
            for stage, (g, b), (e1, e2) in zip(model.encoder.body.stages, params, eps, strict=True)]


class ByHand:
    "One step as the publication writes it, with nothing of the library's but the model"
    def __init__(self, seed=5, lrs=(0.05, 0.05), aux_weight=0., model=None):
        self.model = (build_model() if model is None else model).train()
        self.lrs = {id(p): lr for group, lr in zip(encoder_head_splitter(self.model), lrs, strict=False) for p in group}
        self.params = [tuple(torch.full((64,), v, dtype=torch.float64).requires_grad_() for v in (0.3, 0.5)) for _ in range(4)]
        torch.manual_seed(seed)
        self.eps = [(torch.randn(64, dtype=torch.float64), torch.randn(64, dtype=torch.float64)) for _ in range(4)]
        self.seen, self.unseen = Episodes().episode(0), Episodes(seed=1).episode(0)
        self.aux_weight, self.head = aux_weight, torch.zeros(N_CLASSES, 64, dtype=torch.float64)

    def seen_loss(self):
        maps, handles = [], noisy_norms(self.model, self.params, self.eps)
        handles.append(self.model.encoder.register_forward_hook(lambda m, args, x: maps.append(x)))
        loss = F.cross_entropy(self.model(*self.seen[:3]), torch.arange(3).repeat_interleave(2))
        for handle in handles: handle.remove()
        classes = torch.tensor(self.seen.classes)
        labels = torch.cat([classes, classes.repeat_interleave(2)])
        self.aux = F.cross_entropy(maps[0].mean((2, 3)) @ self.head.T, labels)
        return loss

    def unseen_loss(self):
        names, ws = zip(*self.model.named_parameters(), strict=True)
        grads = torch.autograd.grad(self.seen_loss(), ws, create_graph=True)
        fast = {name: w - self.lrs[id(w)]*g for name, w, g in zip(names, ws, grads, strict=True)}
        self.model.eval()
        scores = functional_call(self.model, fast, tuple(self.unseen[:3]))
        self.model.train()
        return F.cross_entropy(scores, torch.arange(3).repeat_interleave(2))

    def gradient(self):
        "Of the pseudo-unseen loss by γ and β, backpropagated through the unrolled step"
        buffers = {k: v.clone() for k, v in self.model.named_buffers()}
        flat = [p for pair in self.params for p in pair]
        grads = torch.cat(torch.autograd.grad(self.unseen_loss(), flat))
        for k, v in self.model.named_buffers(): v.copy_(buffers[k])
        return grads

    def step(self):
        "The model's weights after the step, with the running statistics of the pseudo-seen episode alone"
        ws = list(self.model.parameters())
        loss = self.seen_loss()
        for w, g in zip(ws, torch.autograd.grad(loss + self.aux_weight*self.aux, ws), strict=True):
            w.data -= self.lrs[id(w)]*g
        return self.model.state_dict()


@pytest.mark.parametrize('lrs', [(0.05, 0.05), (0.01, 0.1)])
def test_gradient_of_gamma_and_beta_equals_the_unrolled_step(plain_descent, lrs):
    cb = lft()
    learn = learner([cb, Seed()], n=1)
    learn.fit(1, slice(*lrs) if lrs[0] != lrs[1] else lrs[0])
    torch.testing.assert_close(start(cb) - gammas(cb), ByHand(lrs=lrs).gradient(), rtol=1e-9, atol=1e-13)
    assert (start(cb) - gammas(cb)).abs().max() > 1e-6


def smooth_model():
    """A model without kinks, whose gradient is a continuous function of γ.

    Nor does its evaluation depend on γ through running statistics, which no gradient goes through.
    """
    model = build_model(method='proto')
    for stage in model.encoder.body.stages: stage.act, stage.pool, stage.norm.momentum = nn.Softplus(), nn.AvgPool2d(2), 0.
    return model


def test_gradient_of_gamma_and_beta_equals_finite_differences(plain_descent):
    cb = lft()
    learner([cb, Seed()], n=1, model=smooth_model()).fit(1, 0.05)
    torch.manual_seed(0)
    for direction in torch.randn(3, 8, 64, dtype=torch.float64):
        def shifted(step, direction=direction):
            hand = ByHand(model=smooth_model())
            for p, d in zip([p for pair in hand.params for p in pair], direction, strict=True): p.data += step*d
            return hand.unseen_loss().item()
        slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
        assert ((start(cb) - gammas(cb)) @ direction.flatten()).item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize('aux', [False, True])
def test_weights_descend_the_pseudo_seen_loss_and_the_auxiliary_one(plain_descent, aux):
    cb = lft(aux=aux)
    learn = learner([cb, Seed()], n=1)
    learn.model.train()
    hand = ByHand(aux_weight=float(aux))
    if aux:  # a classifier that starts at zero tells the encoder nothing
        learn.add_cb(StartHead(cb))
        hand.head = StartHead.weight
    learn.fit(1, 0.05)
    assert_same(weights(learn), hand.step(), rtol=1e-9, atol=1e-12)


class StartHead(Callback):
    "The auxiliary classifier starts from fixed weights"
    weight = torch.linspace(-1, 1, N_CLASSES*64, dtype=torch.float64).view(N_CLASSES, 64).sin()
    order = 51
    def __init__(self, cb): self.cb = cb
    def before_batch(self): self.cb.aux_head.weight.data.copy_(self.weight)


def test_auxiliary_weight_decays_as_published():
    seen = []
    class Watch(Callback):
        order = 20
        def after_loss(self):
            if self.training: seen.append(self.learn.lft.losses['aux'].item() / math.log(N_CLASSES))
    cb = lft(aux=True, ft_lr=0.)
    learner([cb, Watch()], n=1, lr=0.).fit(4)
    torch.testing.assert_close(seen, [0.9**(20*epoch // 4) for epoch in range(4)])


def test_fixed_inner_learning_rate(plain_descent):
    a, b = lft(inner_lr=0.02), lft()
    learner([a, Seed()], n=1).fit(1, 0.05)
    learner([b, Seed()], n=1).fit(1, 0.02)
    torch.testing.assert_close(gammas(a), gammas(b), rtol=1e-12, atol=0)


# In the training loop ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('method', ['relation', 'can', 'gnn', 'proto', 'matching'])
def test_every_method_learns_its_transformations(method):
    cb = lft(aux=True)
    learn = learner([cb], model=build_model(method=method))
    names = list(learn.model.state_dict())
    learn.fit(1)
    assert gammas(cb).isfinite().all() and (gammas(cb) - start(cb)).abs().max() > 0
    assert list(learn.model.state_dict()) == names and not ft_layers(learn.model)
    assert all(p.grad is None for p in cb.ft_parameters + cb.aux_parameters)


def test_ft_keeps_gamma_and_beta_and_is_off_in_validation():
    cb = FTCallback()
    learn, plain = (learner([*cbs, Seed()], lr=0.1) for cbs in ([cb], []))
    assert learn.validate()[0] == plain.validate()[0]
    for o in (learn, plain): o.fit(1)
    layers = cb.transformations.values()
    assert {p.unique().item() for layer in layers for p in layer.parameters()} == {0.3, 0.5}
    assert not torch.equal(*(next(iter(o.model.parameters())) for o in (learn, plain)))
    assert learn.validate()[0] == learn.validate()[0] and not ft_layers(learn.model)


def test_unseen_episodes_leave_no_running_statistics(plain_descent):
    learn = learner([lft([Episodes(seed=1)]), Seed()], n=1)
    other = learner([lft([Episodes(seed=2)]), Seed()], n=1)
    for o in (learn, other): o.fit(1)
    assert_same(weights(learn), weights(other))
    assert learn.model.training is False and not torch.equal(gammas(learn.lft), gammas(other.lft))


def test_guided_loss_is_what_lft_differentiates_whatever_the_order_of_callbacks(plain_descent):
    def fit(cbs):
        learn = learner([*cbs, Seed()], n=2)
        learn.fit(1)
        return weights(learn), gammas(learn.lft)
    a, b, alone = fit([lft(), LRPGuidedCallback()]), fit([LRPGuidedCallback(), lft()]), fit([lft()])
    assert_same(a[0], b[0], rtol=0, atol=0)
    assert torch.equal(a[1], b[1]) and not torch.allclose(a[1], alone[1])


def test_gradient_of_the_guided_loss_equals_the_unrolled_step(plain_descent):
    "The weights of the explanation are constants, so the pseudo-seen loss is ξ·L(p) + λ·L(classify(w·f_p))"
    cb, kept = lft(), []
    def explainer(model, f_p):
        kept.append(LRP()(model, f_p))
        return kept[-1]
    learner([cb, LRPGuidedCallback(xi=0.7, lam=0.4, explainer=explainer), Seed()], n=1).fit(1)
    hand = ByHand()
    plain, classify, seen = hand.seen_loss, hand.model.classify, []
    def remember(f_p):
        seen.append(f_p)
        return classify(f_p)
    def guided_loss():
        hand.model.classify = remember
        loss = plain()
        del hand.model.classify
        scores = classify(relevance_weights(kept[0]) * seen[0])
        return 0.7*loss + 0.4*F.cross_entropy(scores, torch.arange(3).repeat_interleave(2))
    hand.seen_loss = guided_loss
    torch.testing.assert_close(start(cb) - gammas(cb), hand.gradient(), rtol=1e-7, atol=1e-12)


def test_weights_that_are_learned_through_have_second_derivatives(plain_descent):
    def fit(guided):
        learn = learner([lft(), LRPGuidedCallback(second_pass=guided), Seed()], n=1, model=build_model(method='can'))
        learn.fit(1)
        return start(learn.lft) - gammas(learn.lft)
    class Constant(PublishedCANPass):
        "The same scores with constant weights"
        def __call__(self, model, f_p):
            relevance = self.relevance
            self.relevance = lambda *args: [R.detach() for R in relevance(*args)]
            try: return super().__call__(model, f_p)
            finally: del self.relevance
    through, constant = fit(PublishedCANPass()), fit(Constant())
    assert through.isfinite().all() and through.abs().max() > 0
    assert not torch.allclose(through, constant, rtol=1e-3)


def test_accumulated_episodes_are_one_update_with_the_mean_gradient(plain_descent):
    def change(cbs, n):
        cb, model = lft([Episodes(1, seed=1)]), build_model()
        # the first episode must not change what the second meets
        for stage in model.encoder.body.stages: stage.norm.momentum = 0.
        learner([cb, Seed(), *cbs], n=n, model=model).fit(1)
        return gammas(cb) - start(cb)
    class Second(Callback):
        order = 51
        def before_batch(self): torch.manual_seed(6)
    both, first = change([EpisodeAccumulation(2)], 2), change([], 1)
    second = change([FirstEpisode(1), Second()], 1)
    torch.testing.assert_close(both, (first + second)/2, rtol=1e-9, atol=1e-13)


def test_clipping_the_model_leaves_gamma_and_beta(plain_descent):
    a, b = (learner([lft(), Seed(), *cbs], n=1) for cbs in ([GradientClip(1e-6)], []))
    before = weights(a)
    for o in (a, b): o.fit(1)
    assert torch.equal(gammas(a.lft), gammas(b.lft))
    moved = [(v - before[k]).norm() for k, v in weights(a).items() if k.endswith('weight')]
    assert torch.stack(moved).norm() < 1e-7


def test_skipped_step_skips_gamma_and_beta_too(plain_descent):
    class Overflow(Callback):
        order = MixedPrecision.order
        def before_step(self):
            if self.iter == 0: raise CancelStepException
    a, b = lft(), lft()
    learner([a, Overflow(), FirstEpisode(1), Seed()], n=1).fit(1)
    learner([b, Overflow()], n=2).fit(1)
    assert torch.equal(gammas(a), start(a)) and not torch.equal(gammas(b), start(b))


def test_optimizer_survives_both_phases_of_fine_tune():
    cb = lft(ft_lr=1e-3)
    learn = learner([cb])
    opts = []
    class Watch(Callback):
        def after_train(self): opts.append(cb.ft_opt)
    learn.add_cb(Watch())
    learn.fine_tune(1, freeze_epochs=1)
    assert opts[0] is opts[1] and {int(s['step']) for s in cb.ft_opt.state.values()} == {6}


@pytest.mark.parametrize('every', ['epoch', 'step', 'all'])
def test_resumed_training_is_the_unbroken_one(tmp_path, every):
    def train(epochs, file=None):
        cb = LFTCallback({'a': Episodes(2, seed=1), 'b': Episodes(2, seed=2)}, every=every)
        learn = learner([cb] + ([ResumeFit(file)] if file else []), n=2)
        torch.manual_seed(3)
        class Stop(Callback):
            order = 99
            def after_epoch(self):
                if self.epoch == epochs - 1: raise KeyboardInterrupt
        learn.add_cb(Stop())
        with pytest.raises(KeyboardInterrupt): learn.fit(3)
        return weights(learn), cb.state_dict()
    whole = train(3)
    train(2, tmp_path/'state.pt')
    resumed = train(3, tmp_path/'state.pt')
    assert_same(whole[0], resumed[0], rtol=0, atol=0)
    for name, layer in whole[1]['transformations'].items():
        assert_same(layer, resumed[1]['transformations'][name], rtol=0, atol=0)
    assert_same(whole[1]['aux_head'], resumed[1]['aux_head'], rtol=0, atol=0)
    assert whole[1]['domains'] == resumed[1]['domains']


def saved_learner(path, cbs, **kwargs): return learner(cbs, cls=FSCLearner, path=path, **kwargs)


@pytest.mark.parametrize('aux', [False, True])
def test_save_and_load_go_on_as_if_nothing_had_happened(tmp_path, aux):
    def fit(learn):
        torch.manual_seed(3)
        learn.fit(1)
        return weights(learn), learn.lft.state_dict()
    domains = lambda: {'a': Episodes(2, seed=1), 'b': Episodes(2, seed=2)}
    first = saved_learner(tmp_path, [LFTCallback(domains(), aux=aux)])
    fit(first)
    first.save('half')
    whole = fit(first)
    resumed = saved_learner(tmp_path, [LFTCallback(domains(), aux=aux)], model=build_model(seed=7)).load('half')
    found = fit(resumed)
    assert_same(whole[0], found[0], rtol=0, atol=0)
    for name, layer in whole[1]['transformations'].items():
        assert_same(layer, found[1]['transformations'][name], rtol=0, atol=0)
        assert not torch.equal(layer['gamma'], torch.full_like(layer['gamma'], .3))
    assert str(whole[1]['opt']) == str(found[1]['opt']) and whole[1]['domains'] == found[1]['domains']
    if aux: assert_same(whole[1]['aux_head'], found[1]['aux_head'], rtol=0, atol=0)


@pytest.mark.filterwarnings('error:Could not load', 'error:Saved file')
def test_files_with_and_without_the_state_of_callbacks(tmp_path):
    plain, with_lft = saved_learner(tmp_path, []), saved_learner(tmp_path, [lft()])
    for name, learn in {'plain': plain, 'lft': with_lft}.items():
        learn.fit(1)
        learn.save(name)
    kept = torch.load(tmp_path/'models'/'plain.pth', weights_only=False)
    assert set(kept) == {'model', 'opt'} and set(kept['opt']) == {'state', 'hypers'}
    # a file of a plain learner leaves γ, β where they start
    other = saved_learner(tmp_path, [lft()]).load('plain')
    assert_same(weights(other), weights(plain))
    assert other.lft.state_dict().keys() == {'domains'}
    # and one with their state is read by a learner without the callback, and by fastai's own
    for cls in (FSCLearner, Learner):
        assert_same(weights(learner([], cls=cls, path=tmp_path).load('lft')), weights(with_lft))
    with_lft.save('weights', with_opt=False)
    assert_same(torch.load(tmp_path/'models'/'weights.pth'), with_lft.model.state_dict())
    other.load('weights', with_opt=False)
    assert other.lft.state_dict().keys() == {'domains'}


def test_loading_other_transformations_is_an_error(tmp_path):
    learn = saved_learner(tmp_path, [lft()])
    learn.fit(1)
    learn.save('all')
    other = saved_learner(tmp_path, [lft(names=['encoder.body.stages.3.norm'])])
    other.fit(1)
    with pytest.raises(ValueError, match='saved transformations follow encoder.body.stages.0'): other.load('all')
    fresh = saved_learner(tmp_path, [lft(names=['encoder.body.stages.3.norm'])]).load('all')
    with pytest.raises(ValueError, match='saved transformations follow encoder.body.stages.0'): fresh.fit(1)


def test_an_exported_learner_saves_and_loads_without_them(tmp_path, other_domain):
    learn = hue_learner(tmp_path/'hues', cbs=LFTCallback(other_domain.train))
    learn.fit(1)
    learn.save('with')
    learn.export()
    loaded = load_learner(tmp_path/'export.pkl')
    assert loaded.lft.state_dict() == {}
    loaded.opt_func, loaded.dls = learn.opt_func, learn.dls
    loaded.load('with')
    assert_same(weights(loaded), weights(learn))


def test_state_of_another_callback_is_refused():
    cb, other, without = lft(aux=True), lft(aux=True, names=['encoder.body.stages.3.norm']), lft(aux=False)
    for o in (cb, other, without): learner([o], n=1).fit(1)
    with pytest.raises(ValueError, match='saved transformations follow encoder.body.stages.0'):
        other.load_state_dict(cb.state_dict())
    with pytest.raises(ValueError, match='saved with aux'): without.load_state_dict(cb.state_dict())


def test_lr_find_leaves_everything_alone(tmp_path):
    cb = lft()
    learn = learner([cb])
    learn.path = tmp_path
    learn.lr_find(num_it=6, show_plot=False, suggest_funcs=None)
    assert not cb.transformations and cb.state_dict()['domains']['epoch'] == 0
    learn.fit(1)
    before = copy.deepcopy(cb.state_dict())
    learn.lr_find(num_it=6, show_plot=False, suggest_funcs=None)
    assert str(before) == str(cb.state_dict())
    learn.fit(1)
    assert cb.state_dict()['domains']['epoch'] == 2


@pytest.mark.parametrize('event', ['forward', 'after_pred', 'after_step'])
def test_an_error_leaves_the_learner_usable(event):
    cb = lft()
    learn = learner([cb])
    broken = True
    def fail(*args):
        if broken: raise RuntimeError('out of memory')
    if event == 'forward': learn.model.relation.register_forward_pre_hook(fail)
    else: learn.add_cb(Callback(**{event: fail}))
    with pytest.raises(RuntimeError, match='out of memory'): learn.fit(1)
    if event == 'forward': assert not ft_layers(learn.model) and torch.backends.cuda.flash_sdp_enabled()
    broken = False
    learn.validate()
    assert not ft_layers(learn.model) and torch.backends.cuda.flash_sdp_enabled()
    assert not learn.model._forward_hooks
    before = gammas(cb)
    learn.fit(1)
    assert not torch.equal(gammas(cb), before)


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('mode', ['fp16', 'bf16'])
def test_mixed_precision_callback_may_be_there(mode):
    cb = lft(aux=True)
    learn = learner([cb, MixedPrecision(mode)], model=build_model(dtype=torch.float32))
    cb.domains.loaders['0'].dtype = torch.float32
    learn.fit(1)
    assert gammas(cb).isfinite().all() and not torch.equal(gammas(cb), start(cb))


class CPUAutocast(Callback):
    "What fastai's MixedPrecision does on a GPU"
    order, run_valid = MixedPrecision.order, False
    def before_batch(self):
        self.context = torch.autocast('cpu', torch.bfloat16)
        self.context.__enter__()
    def after_loss(self): self.context.__exit__(None, None, None)


def test_autocast_gives_the_gradient_up_to_rounding(plain_descent):
    changes = []
    for cbs in ([], [CPUAutocast()]):
        cb = lft([Episodes(seed=1, dtype=torch.float32)], aux=True)
        learner([cb, Seed(), *cbs], n=1, model=smooth_model().float()).fit(1)
        changes.append(gammas(cb) - start(cb))
    assert F.cosine_similarity(*changes, dim=0) > 0.7 and changes[1].dtype == torch.float32


def test_vision_transformer_has_second_derivatives():
    torch.manual_seed(0)
    model = create_fsc_model('proto', create_encoder('test_vit', img_size=SIZE), n_way=3, img_size=SIZE).double()
    cb = lft()
    learner([cb], n=1, model=model).fit(1)
    assert len(cb.transformations) == 12 and not torch.equal(gammas(cb), start(cb))


class NoSync(TorchDispatchMode):
    "Reading a number off the device, which stalls it, is an error"
    waiting = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in self.waiting, f'{func} waits for the device'
        return func(*args, **(kwargs or {}))


def test_the_step_never_waits_for_the_device():
    class Watched(LFTCallback):
        def before_batch(self):
            with NoSync(): super().before_batch()
        def after_loss(self):
            with NoSync(): super().after_loss()
    with pytest.raises(AssertionError, match='waits'), NoSync(): torch.ones(1).item()
    learner([Watched([Episodes(seed=1)])]).fit(1)


# Domains ----------------------------------------------------------------------------------------------------------------------

def test_all_domains_are_the_mean_of_each(plain_descent):
    def change(domains, **kwargs):
        cb = lft(domains, **kwargs)
        learner([cb, Seed()], n=1).fit(1)
        return gammas(cb) - start(cb)
    a, b = Episodes(seed=1), Episodes(seed=2)
    torch.testing.assert_close(change([a, b], every='all'), (change([a]) + change([b]))/2, rtol=1e-9, atol=1e-13)


def test_mistakes_are_named(tmp_path):
    cb = lft()
    learn = learner([cb])
    for own in (learn.dls, learn.dls.train):
        with pytest.raises(ValueError, match='domain 0 is the domain that the model is trained on'):
            learner_like(learn, lft([own])).fit(1)
    with pytest.raises(ValueError, match='two callbacks'): learner([lft(), FTCallback()]).fit(1)
    with pytest.raises(ValueError, match='labels that carry the classes'): learner([lft(aux=True)], labels=None).fit(1)
    with pytest.raises(ValueError, match='aux knows 2 classes'): learner([lft(aux=2)]).fit(1)


def learner_like(learn, cb):
    other = learner([cb])
    other.dls = learn.dls
    return other


def test_compiled_model_is_refused():
    for cb in (FTCallback(), lft()):
        learn = learner([cb])
        learn.model = torch.compile(learn.model)
        with pytest.raises(ValueError, match=f'{type(cb).__name__}: a compiled model'): learn.fit(1)
        learn.model = learn.model._orig_mod
        learn.model.encoder.compile()
        with pytest.raises(ValueError, match=f'{type(cb).__name__}: a compiled model'): learn.fit(1)


# With real episodes -----------------------------------------------------------------------------------------------------------

@pytest.fixture
def other_domain(tmp_path):
    return hue_loaders(write_hues(tmp_path/'other', seed=1))


def test_fine_tune_export_and_load_with_real_episodes(tmp_path, other_domain):
    cb = LFTCallback(other_domain.train)
    learn = hue_learner(tmp_path/'hues', cbs=cb)
    learn.fine_tune(1, pretrain_epochs=1)
    size = len(pickle.dumps(learn.model))
    learn.export()
    loaded = load_learner(tmp_path/'export.pkl')
    assert len(pickle.dumps(loaded.model)) == size and not ft_layers(loaded.model)
    assert not loaded.lft.transformations and loaded.lft.domains is None and loaded.lft.ft_opt is None
    learn.fit(1)  # the exported one goes on
    loaded.dls = learn.dls
    with pytest.raises(ValueError, match='no pseudo-unseen domains'): loaded.fit(1)


def test_each_pass_draws_new_episodes_even_from_a_validation_loader(tmp_path, other_domain):
    cb = LFTCallback({'other': other_domain.valid})
    drawn = []
    class Watch(Callback):
        def after_batch(self):
            if self.training: drawn.append(cb.losses['unseen'].item())
    hue_learner(tmp_path/'hues', cbs=[cb, Watch()], lr=0.).fit(3)
    assert len(set(drawn)) == len(drawn) and cb.domains.passes['other'] >= 3


def test_domain_with_too_few_classes_is_named(tmp_path, other_domain):
    few = other_domain.train.new()
    few.n_way, few._sampler = 7, None
    with pytest.raises(ValueError, match='pseudo-unseen domain few: n_way=7, but .* has 6 classes'):
        hue_learner(tmp_path/'hues', cbs=LFTCallback({'few': few})).fit(1)
