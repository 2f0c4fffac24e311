"StyleAdv and SVasP: the published numbers"
import random

import torch
import torch.nn.functional as F

from fsc_fastai.callback import styleadv
from fsc_fastai.callback.styleadv import START, StyleAdvCallback, attacked
from fsc_fastai.callback.svasp import SVasPCallback, normalised, random_crops

from ..golden_files import load, recorded, same
from .golden import GRADIENTS, MAPS, OPS, Step


@recorded('styleadv_ops_*.npz')
def test_attack(path):
    z, _ = load(path)
    assert abs(float(z['start']) - START) < 1e-7
    for i, epsilon in enumerate(z['epsilons']):
        for what in ('mean', 'std'): same(attacked(z[what], z[f'grad_{what}'], epsilon), z[f'adv_{what}_{i}'], OPS)


@recorded('svasp_attack_*.npz')
def test_attack_of_svasp(path):
    z, _ = load(path)
    direction = SVasPCallback(decay=float(z['decay'])).direction(z['grad'], z['crop_grads'])
    same(attacked(z['style'], direction, z['epsilon'], z['noise']), z['adv'], OPS)


def test_published_constants():
    random.seed(0)
    cb, other = StyleAdvCallback(), SVasPCallback()
    assert (cb.epsilons, cb.p_skip, cb.start, cb.min_std) == ((.8, .08, .008), .4, 'published', None)
    assert (other.epsilons, other.p_skip, other.start, other.decay) == ((.8, .08, .008), .2, 'gaussian', .1)
    cb.names = other.names = ['a', 'b', 'c']*300
    for o, same_lengths in ((cb, 1.), (other, 1/3)):
        epsilons, restyled = o.draw()
        assert abs(sum(restyled)/900 - 1 + o.p_skip) < .07
        assert abs(sum(a == b for a, b in epsilons)/900 - same_lengths) < .07
        assert all(abs(sum(a == e for a, _ in epsilons)/900 - 1/3) < .07 for e in o.epsilons)


def spied(monkeypatch, owner, name):
    "Arguments and result of each call"
    calls, f = [], getattr(owner, name)
    def spy(*args, **kwargs):
        out = f(*args, **kwargs)
        calls.append((args, out))
        return out
    monkeypatch.setattr(owner, name, spy)
    return calls


@recorded('styleadv_episode_*.npz')
def test_published_step(path, monkeypatch):
    z = Step(path)
    cb = StyleAdvCallback(p_skip=float(z['p_threshold']), n_classes=len(z.state['classifier.bias']))
    epsilons, restyled = [[float(e)]*2 for e in z['epsilon']], z['restyled'].bool().tolist()
    assert restyled == (z['p'] >= cb.p_skip).tolist()
    monkeypatch.setattr(cb, 'draw', lambda: (epsilons, restyled))
    learn = z.learner(cb, z.episode(classes=tuple(z['global_y'][:, 0].tolist())))
    cb.before_fit()
    with torch.no_grad():
        for key in ('weight', 'bias'): getattr(cb.global_classifier, key).copy_(z.state[f'classifier.{key}'])
    weight, bias = (p.detach().clone() for p in (cb.global_classifier.weight, cb.global_classifier.bias))
    attacks, losses = spied(monkeypatch, styleadv, 'attacked'), spied(monkeypatch, cb.global_classifier, 'loss')
    steps = spied(monkeypatch, styleadv, 'restyle')
    learned = spied(monkeypatch, torch.autograd, 'grad')
    scores, maps = [], []
    z.model.register_forward_hook(lambda m, args, out: scores.append(out.detach()) if m.training else None)
    z.model.encoder.register_forward_hook(lambda m, args, out: maps.append(out.detach()) if m.training else None)
    learn.fit(1, 0.)

    for i, loss in enumerate(z['attack_losses']): same(losses[i][1], loss, MAPS, f'attack_losses[{i}]')
    assert len(losses) == 4 and len(attacks) == 6 and len(scores) == len(maps) == 2
    for b in (1, 2, 3):
        for what, ((value, grad, *_), out) in zip(('mean', 'std'), attacks[2*b - 2:2*b], strict=True):
            for ours, key, tol in ((value, what, MAPS), (grad, f'grad_{what}', GRADIENTS), (out, f'adv_{what}', MAPS)):
                same(ours.flatten(1), z[f'{key}_{b}'][z.order], tol, f'{key}_{b}')
    # calls of `restyle` in the attacked pass, the last ones
    for b, (args, out) in zip([b for b in (1, 2, 3) if restyled[b - 1]], steps[len(steps) - sum(restyled):], strict=True):
        same(args[0][:1], z[f'block{b}_in'], MAPS, f'block{b}_in')
        same(out[:1], z[f'block{b}_out'], MAPS, f'block{b}_out')
    of_classes = [F.linear(f.mean((2, 3)), weight, bias) for f in maps]
    same(of_classes[0], z['cls_ori_scores'][z.order], MAPS, 'cls_ori_scores')
    same(of_classes[1], z['cls_adv_scores'][z.order], MAPS, 'cls_adv_scores')
    for ours, key in zip(scores, ('fsl_ori_scores', 'fsl_adv_scores'), strict=True): same(ours, z[key], MAPS, key)
    for ours, key in (('attacked', 'fsl_adv_loss'), ('kl', 'kl'), ('classes', 'cls_ori_loss')):
        same(cb.losses[ours], z[key], MAPS, key)
    same(learn.total, z['total_loss'], MAPS)
    by_classifier = [out for args, out in learned if any(o is cb.global_classifier.bias for o in args[1])]
    assert len(by_classifier) == 1
    z.check_gradients(learn.gradients, **{'classifier.weight': by_classifier[0][0], 'classifier.bias': by_classifier[0][1]})
    z.check_buffers()


def test_crops_are_parts_of_their_images_at_full_size():
    rows = torch.linspace(0, 1, 32).view(1, 1, 32, 1).expand(6, 2, 32, 32)
    columns = torch.linspace(0, 1, 32).view(1, 1, 1, 32).expand(6, 2, 32, 32)
    torch.manual_seed(0)
    for images, across in ((rows, 3), (columns, 2)):
        crops = random_crops(images, .3, .7)
        assert crops.shape == images.shape and crops.std(across).max() < 1e-6
        spans = (crops.amax((1, 2, 3)) - crops.amin((1, 2, 3)))*32/31
        assert (spans > .25).all() and (spans < .72).all() and len(spans.unique()) == 6
    torch.testing.assert_close(random_crops(images, 1., 1.), images)


def test_gradients_of_nothing_have_no_direction():
    assert torch.equal(normalised(torch.zeros(2, 3, 1, 1)), torch.zeros(2, 3, 1, 1))
    torch.testing.assert_close(normalised(torch.tensor([[[[2.]], [[-4.]]]])).flatten(), torch.tensor([2/3, -4/3]))
