"Whole episodes shared among ranks, each simulated in this process"
import pytest
import torch
from fastai.torch_core import to_detach

from fsc_fastai.data.rank_loaders import EpisodicDistributedDL

from .trees import identity


def content(dl): return [identity(b.support_x).tolist() for b in dl]


@pytest.mark.parametrize('n_episodes', [6, 5])
def test_ranks_share_the_episodes_of_one_loader(make_dls, n_episodes):
    alone = make_dls(n_episodes=n_episodes)
    ranks = [EpisodicDistributedDL(make_dls(n_episodes=n_episodes).train, rank=r, world_size=2) for r in range(2)]
    for _ in range(2):
        shared = [o for step in zip(*map(content, ranks), strict=True) for o in step]
        assert shared[:n_episodes] == content(alone.train)
        assert shared[n_episodes:] == shared[:len(shared) - n_episodes]
    assert all(len(rank) == 3 and rank.epoch == 2 and rank.n_inp == 3 and rank.n_way == 3 for rank in ranks)


def test_epoch_set_on_the_wrapper_reaches_the_loader(make_dls):
    dl = make_dls().train
    EpisodicDistributedDL(dl, rank=0, world_size=2).epoch = 4
    assert dl.epoch == 4


def test_gathered_statistics_count_each_episode_once(make_dls):
    class Gathered(EpisodicDistributedDL):
        "Gathers as if both ranks sent the same"
        def _to_detach(self, b, cpu=True, gather=True):
            return to_detach(torch.cat([b, b]) if gather and b.ndim else b, cpu, False)

    rank = Gathered(make_dls(n_episodes=5).train, rank=0, world_size=2)
    rows = [len(rank.to_detach(torch.zeros(4))) for _ in rank]
    assert rows == [8, 8, 4] and rank.to_detach(torch.tensor(1.)) == 1 and len(rank.to_detach(torch.zeros(4), gather=False)) == 4
