"What γ, β and the model descend under LFT, against Algorithm 1 of Tseng et al. 2020 by hand"
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from torch import nn
from torch.func import functional_call

from fsc_fastai.callback.accumulate import EpisodeAccumulation
from fsc_fastai.callback.guided import LRPGuidedCallback, PublishedCANPass
from fsc_fastai.encode import create_encoder
from fsc_fastai.explain.lrp import LRP
from fsc_fastai.explain.weights import relevance_weights
from fsc_fastai.learner.core import encoder_head_splitter
from fsc_fastai.methods import create_fsc_model
from tests.learners import weights

from ..episodes import (
    N_CLASSES,
    SIZE,
    BFloat16,
    Episodes,
    FirstEpisode,
    Seed,
    assert_same,
    build_model,
    gammas,
    learner,
    lft,
    start,
)


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


def test_all_domains_are_the_mean_of_each(plain_descent):
    def change(domains, **kwargs):
        cb = lft(domains, **kwargs)
        learner([cb, Seed()], n=1).fit(1)
        return gammas(cb) - start(cb)
    a, b = Episodes(seed=1), Episodes(seed=2)
    torch.testing.assert_close(change([a, b], every='all'), (change([a]) + change([b]))/2, rtol=1e-9, atol=1e-13)


def test_autocast_gives_the_gradient_up_to_rounding(plain_descent):
    changes = []
    for cbs in ([], [BFloat16()]):
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
