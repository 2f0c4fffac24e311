"Episodes of noise in double precision, and silent learners on them that descend the plain gradient"
from functools import partial

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import SGD

from fsc_fastai.callback.lft import LFTCallback
from fsc_fastai.data.episode import Episode, EpisodeLabel
from fsc_fastai.learner.core import encoder_head_splitter
from fsc_fastai.methods import create_fsc_model
from tests.learners import silent

N_CLASSES, SIZE = 6, 16


class Episodes:
    "Episodes of noise in double precision; episode k of an epoch is always the same"
    n_inp, vocab = 3, list(range(N_CLASSES))

    def __init__(self, n=3, seed=0, dtype=torch.float64, labels=EpisodeLabel, device='cpu', n_shot=1):
        self.device, self.n_shot = torch.device(device), n_shot
        self.n, self.seed, self.dtype, self.labels, self.epoch, self.dataset = n, seed, dtype, labels, 0, self

    def episode(self, k):
        g = torch.Generator().manual_seed(1000*self.seed + k)
        classes = tuple(torch.randperm(N_CLASSES, generator=g)[:3].tolist())
        def part(n):
            y = torch.arange(3, device=self.device).repeat_interleave(n)
            return (torch.randn(3*n, 3, SIZE, SIZE, generator=g, dtype=self.dtype).to(self.device),
                    EpisodeLabel(y, classes=classes) if self.labels is EpisodeLabel else y)
        return Episode(*part(self.n_shot), *part(2))

    def __len__(self): return self.n
    def __iter__(self): return map(self.episode, range(self.n))


def build_model(seed=0, method='relation', arch='conv4', dtype=torch.float64, **kwargs):
    torch.manual_seed(seed)
    return create_fsc_model(method, arch, n_way=3, img_size=SIZE, **kwargs).to(dtype)


def learner(cbs, n=3, model=None, lr=0.05, cls=Learner, path=None, device='cpu', **kwargs):
    "A silent learner that descends the plain gradient"
    model = build_model() if model is None else model
    dtype = next(model.parameters()).dtype
    dls = DataLoaders(Episodes(n, dtype=dtype, device=device, **kwargs), Episodes(1, seed=9, dtype=dtype, device=device),
                      device=device)
    dls.n_inp, dls.vocab = 3, Episodes.vocab
    learn = cls(dls, model, loss_func=model.default_loss(), cbs=[*cbs, SingleLoss()], opt_func=partial(SGD, mom=0.), lr=lr,
                splitter=encoder_head_splitter, path=path)
    return silent(learn)


class SingleLoss(Callback):
    "fastai's Recorder averages in single precision"
    order = 90
    def after_loss(self): self.learn.loss = self.learn.loss.float()


class StepLosses(Callback):
    "Keeps the loss of each step"
    order = 89
    def __init__(self): self.seen = []
    def before_backward(self): self.seen.append(self.learn.loss_grad.detach().clone())


class BFloat16(Callback):
    "Autocast from the forward pass to the loss, as fastai's `MixedPrecision` has it on a GPU"
    order = MixedPrecision.order
    def before_batch(self): self.autocast = torch.autocast('cpu', torch.bfloat16); self.autocast.__enter__()
    def after_loss(self): self.autocast.__exit__(None, None, None)


class CutOff(Callback):
    "Breaks the fit at a batch of an epoch"
    order = 95
    def __init__(self, epoch, batch=0): self.at = epoch, batch
    def after_batch(self):
        if self.training and (self.epoch, self.iter) == self.at: raise KeyboardInterrupt


class Seed(Callback):
    "The same noise in every run, of the transformations in step i of an epoch; `torch.manual_seed(seed + i)`"
    order, run_valid = 50, False
    def __init__(self, seed=5): self.seed = seed
    def before_batch(self): torch.manual_seed(self.seed + self.iter)


class FirstEpisode(Callback):
    "Every step has the same episode"
    def __init__(self, k=0): self.k = k
    def before_batch(self): self.learn.xb, self.learn.yb = self.dls.train.episode(self.k)[:3], self.dls.train.episode(self.k)[3:]


def lft(domains=None, **kwargs):
    "An LFTCallback on one domain"
    return LFTCallback([Episodes(seed=1)] if domains is None else domains, **({'ft_lr': 1., 'ft_wd': 0., 'aux': False} | kwargs))


def gammas(cb): return torch.cat([p.detach().flatten() for p in cb.ft_parameters])


def start(cb): return torch.cat([torch.full_like(p, v) for layer in cb.transformations.values()
                                 for v, p in zip((0.3, 0.5), layer.parameters(), strict=True)]).flatten().detach()


def assert_same(a, b, **kwargs):
    assert list(a) == list(b)
    for k in a: torch.testing.assert_close(a[k], b[k], **kwargs)
