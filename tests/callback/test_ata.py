"ATA: the published numbers, and what it leaves alone"
import pytest
import torch

from fsc_fastai.callback import ata
from fsc_fastai.callback.ata import ATACallback, random_kernel

from ..golden_files import golden, same
from .golden import MAPS, OPS, Step

FILES = [(method, path) for method in ('gnn', 'proto') for path in golden(f'ata_{method}_*.npz')]


@pytest.mark.parametrize('method, path', FILES, ids=[path.stem for _, path in FILES])
def test_published_step(method, path, monkeypatch):
    z = Step(path, method)
    cb = ATACallback(lr=float(z['lr']), p_plain=0., steps=len(z['losses']))
    monkeypatch.setattr(cb, 'kernel', lambda x: z['kernel'])
    learn = z.learner(cb, z.episode())
    losses, scores, images = [], [], []
    def watch(model, args, out):
        scores.append(out.detach())
        images.append(torch.cat([args[0], args[2]]).detach())
    z.model.register_forward_hook(watch)
    loss_func = learn.loss_func
    learn.loss_func = lambda *args: losses.append(loss_func(*args)) or losses[-1]
    before = {k: v.clone() for k, v in z.model.state_dict().items()}
    buffers = []
    z.model.register_forward_pre_hook(lambda m, args: buffers.append(m.training or all(
        torch.equal(before[k], v) for k, v in m.state_dict().items())))
    learn.fit(1, 0.)

    assert len(losses) == len(scores) == cb.steps + 1 and all(buffers)
    by_image = lambda key: z[key].flatten(0, 1)[z.order]
    for ours, key, tol in ((images[0], 'x_conv', OPS), (images[1], 'x_step1', MAPS), (images[-1], 'x_adv', MAPS)):
        same(ours, by_image(key), tol, key)
    same(torch.stack(losses[:-1]), z['losses'], MAPS, 'losses')
    for i, key in ((0, 'scores_first'), (-2, 'scores_last'), (-1, 'train_scores')): same(scores[i], z[key], MAPS, key)
    same(learn.total, z['train_loss'], MAPS, 'train_loss')
    z.check_gradients(learn.gradients)


def test_kernels_are_drawn_as_published():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 20, 20)
    for size in ATACallback().sizes:
        kernels = torch.stack([random_kernel(size, x) for _ in range(400)])
        assert kernels.shape[1:] == (3, 3, size, size) and abs(kernels.std()*size*3**.5 - 1) < .06 and abs(kernels.mean()) < .02
    cb = ATACallback()
    assert (cb.steps, cb.p_plain, cb.sizes) == (5, .5, (1, 3, 5, 7, 11, 15))
    assert all(torch.equal(ATACallback(p_plain=1.).convolved(x), x) for _ in range(9))
    drawn = [cb.convolved(x) for _ in range(300)]
    assert {o.shape for o in drawn} == {x.shape} and .4 < sum(torch.equal(o, x) for o in drawn)/300 < .6


def test_the_step_is_in_proportion_to_the_pixels(monkeypatch):
    from .episodes import learner
    used = []
    monkeypatch.setattr(ata, 'ascended', lambda x, loss, lr, steps: used.append(lr) or x)
    learner([ATACallback()], n=1).fit(1)
    assert used == [80*16**2/224**2]
    learner([ATACallback(lr=3.)], n=1).fit(1)
    assert used[1:] == [3.]


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match=r'sizes=\(3, 4\).*odd'): ATACallback(sizes=(3, 4))
