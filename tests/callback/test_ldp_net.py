"The losses of LDP-Net, its crops and its momentum copy"
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from torch import nn

from fsc_fastai.callback.ldp_net import LDPNetCallback, distillation, follow, local_crops, prototype_scores
from fsc_fastai.methods.base import class_means

from ..golden_files import load, recorded, same
from ..learners import hue_learner, weights
from .golden import OPS


@recorded('ldpnet_*.npz')
def test_losses(path):
    arrays, _ = load(path)
    way, shot, query = arrays['meta'].tolist()
    features = arrays['features'].requires_grad_()
    support, queries = features.unflatten(0, (way, -1)).split([shot, query], 1)
    y = torch.arange(way)
    prototypes = class_means(support.flatten(0, 1), y.repeat_interleave(shot))
    scores = prototype_scores(queries.flatten(0, 1), prototypes)
    local = prototype_scores(arrays['local_features'], prototypes).unflatten(0, (-1, way*query))
    ce = F.cross_entropy(scores, y.repeat_interleave(query))
    own, other = distillation(scores, local, torch.arange(way*query).view(way, query), tuple(arrays['pick'].tolist()))
    same(ce, arrays['ce_loss'], OPS)
    same(own, arrays['same_image_loss'], OPS)
    same(other, arrays['across_images_loss'], OPS)
    cb = LDPNetCallback()
    total = ce + cb.same*own + cb.across*other
    same(total, arrays['total_loss'], OPS)
    total.backward()
    same(features.grad, arrays['grad_features'], OPS)


@recorded('ldpnet_*.npz')
def test_momentum(path):
    arrays, _ = load(path)
    model, copy = (nn.Linear(arrays['w_model'].shape[1], arrays['w_model'].shape[0], bias=False) for _ in range(2))
    model.weight.data, copy.weight.data = arrays['w_model'].clone(), arrays['w_momentum'].clone()
    follow(copy, model, LDPNetCallback().momentum)
    same(copy.weight, arrays['w_momentum_after'], OPS)
    same(model.weight, arrays['w_model'], OPS)


def test_crops_show_a_part_of_their_image():
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 224), torch.linspace(-1, 1, 224), indexing='ij')
    images = torch.stack([torch.stack([x, y, torch.full_like(x, i)]) for i in range(5)])
    crops = local_crops(images, 6, 96)
    assert crops.shape == (30, 3, 96, 96)
    assert torch.equal(crops[:, 2].mean((1, 2)).round(), torch.arange(5.).repeat(6))
    width, height = (crops[:, i].amax((1, 2)) - crops[:, i].amin((1, 2)) for i in (0, 1))
    shares = width*height/4
    assert shares.min() > .04 and shares.max() < .15 and (width/height).min() > .7 and (width/height).max() < 1.4
    assert len(crops[:, 0].mean((1, 2)).unique()) == 30
    assert 5 < (crops[:, 0, 0, 0] > crops[:, 0, 0, -1]).sum() < 25  # mirrored


def learner(tmp_path, method='proto', **kwargs):
    cb = LDPNetCallback(crop_size=16, **kwargs)
    learn = hue_learner(tmp_path/'hues', method, 'conv4', cbs=cb, dls_kwargs=dict(n_episodes=3))
    return learn, cb


def test_crops_are_as_96_to_224_but_large_enough_for_the_encoder(tmp_path):
    for size, expected in ((84, 36), (20, 20)):
        learn = hue_learner(tmp_path/'hues', 'proto', 'conv4', cbs=LDPNetCallback(), dls_kwargs=dict(n_episodes=1, size=size))
        learn.add_cb(seen := Sizes())
        learn.fit(1)
        assert seen.sizes == [expected]


class Sizes(Callback):
    "Of the crops"
    run_valid = False
    def before_batch(self):
        self.sizes = []
        self.ldp_net.augment = lambda crops: self.sizes.append(crops.shape[-1]) or crops


def test_copy_follows_the_encoder(tmp_path):
    learn, cb = learner(tmp_path, momentum=.5)
    start = [p.clone() for p in learn.model.encoder.parameters()]
    learn.fit(1, 1e-2)
    parts = list(zip(cb.momentum_encoder.parameters(), learn.model.encoder.parameters(), start, strict=True))
    assert any(not torch.equal(new, first) for _, new, first in parts)
    far = lambda pairs: sum((a - b).square().sum() for a, b in pairs)
    assert 0 < far((old, new) for old, new, _ in parts) < far((first, new) for _, new, first in parts)
    assert not any(p.requires_grad for p in cb.momentum_encoder.parameters())
    again, other = learner(tmp_path)
    learn.save('ldp')
    again.load('ldp')
    for a, b in zip(cb.momentum_encoder.parameters(), other.momentum_encoder.parameters(), strict=True): assert torch.equal(a, b)


def test_weights_of_the_losses_count(tmp_path):
    ends = []
    for kwargs in (dict(same=0., across=0.), dict(across=0.), {}):
        torch.manual_seed(0)
        learn, _ = learner(tmp_path, **kwargs)
        learn.fit(1, 1e-2)
        ends.append(torch.cat([v.flatten() for k, v in weights(learn).items() if k.endswith('weight')]))
    assert not torch.equal(ends[0], ends[1]) and not torch.equal(ends[1], ends[2])


def test_unequal_numbers_of_queries_are_refused(tmp_path):
    learn, _ = learner(tmp_path)
    class OneLess(Callback):
        order = -100
        def before_batch(self): self.learn.xb, self.learn.yb = (*self.xb[:2], self.xb[2][:-1]), (self.yb[0][:-1],)
    with pytest.raises(ValueError, match='8 queries are not as many for each of 3'): learn.fit(1, cbs=OneLess())
