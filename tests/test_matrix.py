"""Every callback with every precision, method and way to train: {plain, FT, LFT, each later training method alone and with LFT,
all with LRP} × {fp32, bf16, fp16} × {RN, CAN, GNN, ProtoNet} × {fine_tune, accumulate, clip, resume, export}.

fastai's own mixed precision knows CUDA alone, so on the CPU bf16 is torch's autocast, entered and left where fastai's callback
does; fp16 with its loss scaling is for a GPU, where all cells are run once more.
"""
from collections.abc import Callable
from itertools import product

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.callback.training import GradientClip
from fastai.learner import load_learner
from fastai.optimizer import SGD
from fastai.torch_core import set_seed
from torch import nn
from torch.testing import assert_close

from fsc_fastai.callback.accumulate import EpisodeAccumulation
from fsc_fastai.callback.afa import AFACallback
from fsc_fastai.callback.ata import ATACallback
from fsc_fastai.callback.bsr import BSRCallback
from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.callback.ldp_net import LDPNetCallback
from fsc_fastai.callback.lft import FTCallback, LFTCallback
from fsc_fastai.callback.maml import FirstOrderMAML
from fsc_fastai.callback.resume import ResumeFit
from fsc_fastai.callback.styleadv import StyleAdvCallback
from fsc_fastai.callback.svasp import SVasPCallback
from fsc_fastai.callback.wave_san import WaveSANCallback
from fsc_fastai.encode.encoder import create_encoder
from fsc_fastai.learner.core import fsc_learner
from tests.callback.episodes import BFloat16, CutOff
from tests.learners import hue_loaders, silent, weights, write_hues

BLOCKS = ['encoder.body']
LATER = {'StyleAdv': lambda: StyleAdvCallback(blocks=BLOCKS),
         'SVasP': lambda: SVasPCallback(blocks=BLOCKS),
         'ATA': lambda: ATACallback(p_plain=0., sizes=(1, 3)),
         'wave-SAN': lambda: WaveSANCallback(blocks=BLOCKS),
         'FLoR': lambda: None, # norms of the encoder
         'BSR': BSRCallback,
         'LDP': LDPNetCallback,
         'AFA': lambda: AFACallback(0., blocks=BLOCKS, gamma=.1, beta=.1),
         'MAML': lambda: FirstOrderMAML(['0'], epochs=1)}
"The later training methods: a line each"
REFUSED = {'AFA+LFT', 'MAML+LFT'}
"Each has a test in its own file"
TOGETHER = ['FLoR+BSR+LDP+MAML+AFA+LRP', 'FLoR+BSR+LDP+LFT+LRP']
CALLBACKS = ['plain', 'LRP', 'FT', 'LFT', 'LFT+LRP', *TOGETHER,
             *(name + other for name in LATER for other in ('', '+LRP', '+LFT') if name + other not in REFUSED)]
METHODS = ['relation', 'can', 'gnn', 'proto']
PLACES = ['cpu-fp32', 'cpu-bf16', 'cuda-fp32', 'cuda-bf16', 'cuda-fp16']
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)
LR, N = .05, 2


class Tiny(nn.Sequential):
    "Images of 8 px to maps `(n, 4, 4, 4)`"
    def __init__(self): super().__init__(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())


class Dtypes(Callback):
    "What precision the forward pass has, and what the loss was scaled by at the end"
    order = MixedPrecision.order + 1
    def __init__(self): self.found, self.scale = set(), None
    def after_epoch(self): self.scale = self.mixed_precision.scaler.get_scale() if hasattr(self, 'mixed_precision') else None
    def after_pred(self):
        one = torch.ones(1, 1, device=self.dls.device)
        self.found.add(torch.nn.functional.linear(one, one).dtype)


# a small scale, because the first step is skipped where a large one overflows; it grows with every step
MIXED = {'cpu-bf16': BFloat16, 'cuda-bf16': lambda: MixedPrecision(AMPMode.BF16),
         'cuda-fp16': lambda: MixedPrecision(AMPMode.FP16, init_scale=2.**4, growth_interval=1)}


class Steps(Callback):
    "The gradients that each optimizer step takes, after everything that changes them"
    order = 89
    def __init__(self): self.grads, self.frozen = [], []
    def before_step(self):
        self.grads.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.model.parameters()])
        self.frozen.append(self.model.encoder.body[0].weight.detach().clone())


@pytest.fixture(scope='module')
def images(tmp_path_factory): return write_hues(tmp_path_factory.mktemp('matrix')/'hues', (('base', 4), ('val', 2)), n=4)


@pytest.fixture
def make(images, tmp_path) -> Callable:
    "Make a silent learner of a cell, always with the same weights and random numbers"
    def build(callbacks, place, method, *cbs, ft_lr=1e-2):
        set_seed(7, reproducible=True)
        small = dict(n_way=2, n_shot=1, n_query=2, n_episodes=N, size=8, batch_tfms=[], device=place[:-5])
        loaders = lambda **kwargs: hue_loaders(images, **small, **kwargs)
        parts = {'LRP': LRPGuidedCallback, 'FT': FTCallback, 'LFT': lambda: LFTCallback(loaders(seed=1), ft_lr=ft_lr), **LATER}
        own = [cb for name in callbacks.split('+') if name != 'plain' and (cb := parts[name]()) is not None]
        own += [Dtypes()] + ([MIXED[place]()] if place in MIXED else [])
        net = create_encoder(Tiny(), img_size=8, flor=(.5, .5)) if 'FLoR' in callbacks else Tiny()
        learn = fsc_learner(loaders(), net, method, opt_func=SGD, lr=LR, cbs=[*own, *cbs], path=tmp_path, wd=0.,
                            method_kwargs=dict(width=8, n_features=8) if method == 'gnn' else {})
        return silent(learn)
    return build


def check(learn, callbacks, place, before, steps=N):
    "What holds after any training: it went on, every part took part, and the model has nothing of it left"
    after = weights(learn)
    assert before.keys() == after.keys() and all(v.isfinite().all() for v in after.values())
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith('encoder') and 'weight' in k)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in learn.model.modules())
    assert not {'classify', 'training_output'} & set(vars(learn.model)) and not learn.model._processed_hooks
    assert learn.dtypes.found == {DTYPES[place[-4:]]} and {v.device.type for v in after.values()} == {place[:-5]}
    if 'LRP' in callbacks:
        assert len(learn.lrp_guided.losses) == steps
        assert all(loss.isfinite() and loss.dtype == torch.float32 for pair in learn.lrp_guided.losses for loss in pair)
    if 'FLoR' in callbacks: assert any('.IN.' in k and not torch.equal(v, before[k]) for k, v in after.items())
    if 'AFA' in callbacks: assert len(learn.afa.losses) == 3 and all(loss.isfinite() for loss in learn.afa.losses.values())
    if 'LDP' in callbacks:
        copied = {k: v for k, v in learn.ldp_net.momentum_encoder.state_dict().items() if 'weight' in k}
        assert all(v.isfinite().all() and not torch.equal(v, after[f'encoder.{k}']) for k, v in copied.items())
        assert any(not torch.equal(v, before[f'encoder.{k}']) for k, v in copied.items())
    if callbacks == 'FT': assert all((o.gamma == .3).all() and (o.beta == .5).all() for o in learn.ft.transformations.values())
    if 'LFT' in callbacks:
        assert learn.lft.losses.keys() == {'seen', 'unseen', 'aux'}
        assert learn.lft.ft_parameters and all(p.isfinite().all() for p in learn.lft.ft_parameters)
        if learn.lft.ft_lr: assert any((p != start).any() for p, start in zip(learn.lft.ft_parameters, (.3, .5)))


def fine_tune(make, tmp_path, *cell):
    "The encoder stands still while the head learns; a method without a head has no such phase"
    learn = make(*cell, steps := Steps())
    before = weights(learn)
    learn.fine_tune(1, LR, pretrain_epochs=0)
    check(learn, *cell[:2], before, N if cell[2] != 'proto' else 2*N)
    assert len(steps.frozen) == 2*N
    first = before['encoder.body.0.weight']
    assert all(torch.equal(w, first) for w in steps.frozen[:N + 1]) == (cell[2] != 'proto')


def accumulate(make, tmp_path, *cell):
    "One step along the mean of the gradients that its episodes have alone"
    alone = make(*cell, steps := Steps(), ft_lr=0.)
    alone.fit(1, 0.)
    assert len(steps.grads) == N
    together = make(*cell, EpisodeAccumulation(N), ft_lr=0.)
    before, start = weights(together), [p.detach().clone() for p in together.model.parameters()]
    together.fit(1, LR)
    check(together, *cell[:2], before)
    # the gradient of half a loss is rounded on its way where half precision has few digits for it
    precise = dict(rtol=1e-3, atol=2e-4) if cell[1] == 'cuda-fp16' else dict(rtol=1e-4, atol=1e-6)
    for p, p0, *grads in zip(together.model.parameters(), start, *steps.grads, strict=True):
        assert_close(p.detach(), p0 - LR*torch.stack(grads).mean(0), **precise)


def clip(make, tmp_path, *cell):
    "The gradient of the whole loss, all its parts together, is cut to a length"
    whole = make(*cell, free := Steps())
    whole.fit(1)
    length = torch.cat([g.flatten() for g in free.grads[0]]).norm()
    clipped = make(*cell, GradientClip(length/3), cut := Steps())
    before = weights(clipped)
    clipped.fit(1)
    check(clipped, *cell[:2], before)
    for a, b in zip(cut.grads[0], free.grads[0], strict=True): assert_close(a, b/3, rtol=1e-3, atol=1e-6)
    assert all(torch.cat([g.flatten() for g in grads]).norm() <= length/3 + 1e-6 for grads in cut.grads)


def resume(make, tmp_path, *cell):
    "Cut off and gone on with is the same as unbroken, bit for bit"
    whole = make(*cell)
    whole.fit_one_cycle(2, LR)
    with pytest.raises(KeyboardInterrupt): make(*cell, ResumeFit(tmp_path/'state.pt'), CutOff(1)).fit_one_cycle(2, LR)
    resumed = make(*cell, ResumeFit(tmp_path/'state.pt'))
    before = weights(resumed)
    torch.rand(3)  # another state of the generators than where the training was cut off
    resumed.fit_one_cycle(2, LR)
    check(resumed, *cell[:2], before)
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(expected[k], found[k]) for k in expected) and whole.dtypes.scale == resumed.dtypes.scale
    if 'LFT' in cell[0]:
        for a, b in zip(whole.lft.ft_parameters, resumed.lft.ft_parameters, strict=True): assert torch.equal(a, b)


def export(make, tmp_path, *cell):
    "It trains; the exported learner answers as this one does, and trains on"
    learn = make(*cell)
    before = weights(learn)
    learn.fit(1)
    check(learn, *cell[:2], before)
    learn.export('learner.pkl')
    loaded = load_learner(tmp_path/'learner.pkl', cpu=not next(learn.model.parameters()).is_cuda)
    episode = learn.dls.valid.one_batch()[:3]
    with torch.no_grad(): assert torch.equal(learn.model.eval()(*episode), loaded.model.eval()(*episode))
    assert not any(m._forward_hooks for m in loaded.model.modules())
    assert {type(cb).__name__ for cb in loaded.cbs} == {type(cb).__name__ for cb in learn.cbs}
    learn.fit(1)
    assert all(v.isfinite().all() for v in weights(learn).values())


USES = [fine_tune, accumulate, clip, resume, export]


def cells():
    """All of them. In the suite each way to train has the later methods in one precision with one model, in turn, and the others
    with every model in fp32, with one in bf16; the rest is slow."""
    for (i, callbacks), (j, use) in product(enumerate(CALLBACKS), enumerate(USES)):
        turn = PLACES[(i + j//2) % 2], METHODS[(i + j) % 4]
        for place, method in product(PLACES, METHODS):
            marks = [pytest.mark.gpu] if place.startswith('cuda') else []
            later = callbacks.split('+')[0] in LATER
            if (place, method) != turn if later else place == 'cpu-bf16' and method != turn[1]: marks.append(pytest.mark.slow)
            yield pytest.param(callbacks, place, method, use, marks=marks, id=f'{use.__name__}-{callbacks}-{place}-{method}')


@pytest.mark.parametrize('callbacks, place, method, use', cells())
def test_matrix(make, tmp_path, callbacks, place, method, use): use(make, tmp_path, callbacks, place, method)
