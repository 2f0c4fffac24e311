"wave-SAN: the published numbers, and where its other episodes come from"
import pytest
import torch

from fsc_fastai.callback import wave_san
from fsc_fastai.callback.wave_san import WaveSANCallback, swapped
from tests.learners import hue_learner

from ..golden_files import load, recorded, same
from .episodes import Episodes, learner
from .golden import MAPS, OPS, OneEpisode, Step


@recorded('wavesan_ops_*.npz')
def test_swap(path):
    z, _ = load(path)
    for kind in ('', 'odd_'):
        a, b = z[f'{kind}A'], z[f'{kind}B']
        both = torch.cat([z[f'{kind}A_swapped'], z[f'{kind}B_swapped']])
        same(swapped(torch.cat([a, b])), both, OPS)
        same(swapped(torch.cat([a, b]), crop=True), both[..., :a.shape[2], :a.shape[3]], OPS)


@recorded('wavesan_episode_*.npz')
def test_published_step(path, monkeypatch):
    z = Step(path)
    partner = z.episode(z.first + z.way*z.each)
    cb = WaveSANCallback(OneEpisode(partner))
    learn = z.learner(cb, z.episode())
    swaps, outputs = [], []
    def spy(maps, crop):
        swaps.append((maps.detach(), out := swapped(maps, crop)))
        return out
    monkeypatch.setattr(wave_san, 'swapped', spy)
    head = z.model.forward_head
    monkeypatch.setattr(z.model, 'forward_head', lambda *args: outputs.append(head(*args)) or outputs[-1])
    learn.fit(1, 0.)

    names = ['A', 'B', 'A_swapped', 'B_swapped']
    for name, ours in zip(names, outputs, strict=True):
        same(ours, z[f'scores_{name}'], MAPS, f'scores_{name}')
        same(learn.loss_func(ours, partner[3]), z[f'loss_{name}'], MAPS, f'loss_{name}')
    n = z.way*z.each
    for b, (before, after) in enumerate(swaps, 1):
        for name, maps in zip(names, (before[:1], before[n:n + 1], after[:1], after[n:n + 1]), strict=True):
            same(maps[:, ::4], z[f'block{b}_{name}'], MAPS, f'block{b}_{name}')
    assert len(swaps) == 3
    same(cb.losses['kl'], (z['kl_A'] + z['kl_B'])/2, MAPS, 'kl')
    same(learn.total, z['total_loss'], MAPS, 'total_loss')
    z.check_gradients(learn.gradients)
    z.check_buffers()


def test_partners_are_other_episodes_of_the_domain(tmp_path):
    seen = []
    class Watched(WaveSANCallback):
        def after_loss(self):
            seen.append(self.xb[0])
            super().after_loss()
    settings = dict(n_episodes=2, val_n_episodes=1, batch_tfms=[])
    def fits(epochs):
        learn = hue_learner(tmp_path/'hues', 'proto', cbs=[cb := Watched()], dls_kwargs=settings)
        drawn = []
        def spy(partners, step):
            drawn.append(batch := next(episodes(partners, step)))
            yield batch
        episodes = wave_san.PseudoUnseen.episodes
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wave_san.PseudoUnseen, 'episodes', spy)
            for n in epochs: learn.fit(n)
        return [batch[0] for batch in drawn], cb
    together, cb = fits([2])
    assert len(together) == 4 and all(not torch.equal(x, a) for x in together for a in seen)
    assert all(not torch.equal(a, b) for i, a in enumerate(together) for b in together[:i])
    apart, again = fits([1, 1])
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True)) and cb.state_dict() == again.state_dict()
    assert all(cb.losses[k].isfinite() for k in ('plain', 'swapped', 'kl')) and cb.losses['kl'] > 0


def test_mistakes_are_named():
    with pytest.raises(ValueError, match='a Episodes draws no other episodes of its domain: pass partner='):
        learner([WaveSANCallback()]).fit(1)
    class Larger(Episodes):
        def episode(self, k): return [torch.cat([o, o]) for o in super().episode(k)]
    with pytest.raises(ValueError, match=r'shapes \[\(3, 3, 16, 16\), .*the partner.s \[\(6, 3, 16, 16\).*image by image'):
        learner([WaveSANCallback([Larger(seed=1)])]).fit(1)
