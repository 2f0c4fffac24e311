"Two processes that train together keep one γ and one β"
import pytest
import torch
import torch.multiprocessing as mp
from fastai.callback.core import Callback
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..episodes import Episodes, build_model, gammas, learner, lft, start


class Distributed(Callback):
    "What fastai's trainer does to the model"
    order = 11
    def before_fit(self): self.learn.model = DistributedDataParallel(self.model, broadcast_buffers=False)
    def after_fit(self): self.learn.model = self.learn.model.module


def train(rank, ranks, folder, seeds):
    "One step with the episodes and the noise of seed `seeds[rank]`"
    torch.set_num_threads(1)
    cb = lft([Episodes(seed=1)], aux=True)
    learn = learner([cb] + [Distributed()] * (ranks > 1), n=1, seed=seeds[rank])
    if ranks > 1: dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=ranks)
    torch.manual_seed(seeds[rank])
    learn.fit(1, 0.05)
    if ranks > 1: dist.destroy_process_group()
    weights = torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    torch.save((gammas(cb) - start(cb), weights, cb.domains.loaders['0'].epoch), folder/f'{ranks}_{seeds[rank]}.pt')


def test_ranks_agree_on_the_mean_gradient_and_draw_different_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim, 'Adam', torch.optim.SGD)
    mp.start_processes(train, (2, tmp_path, (3, 4)), nprocs=2, start_method='fork')
    for seed in (3, 4): train(0, 1, tmp_path, (seed,))
    a, b, *alone = (torch.load(tmp_path/f'{ranks}_{seed}.pt') for ranks in (2, 1) for seed in (3, 4))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and {a[2], b[2]} == {0, 1}
    torch.testing.assert_close(a[0], (alone[0][0] + alone[1][0])/2, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(a[1], (alone[0][1] + alone[1][1])/2, rtol=1e-9, atol=1e-12)


def test_synchronised_batch_norm_is_refused(monkeypatch):
    monkeypatch.setattr('fsc_fastai.callback.lft.learned.world_size', lambda: 2)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(build_model())
    with pytest.raises(ValueError, match='synchronised batch norm has no second derivative, train with sync_bn=False'):
        learner([lft()], model=model).fit(1)
