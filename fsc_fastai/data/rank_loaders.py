"The loaders of one process among several: episodes and images shared, none cut"
from __future__ import annotations

from typing import Any

import torch
from fastai.distributed import DistributedDL
from fastai.torch_core import apply
from torch import Tensor

__all__ = ['ImageDistributedDL', 'EpisodicDistributedDL']


class ImageDistributedDL(DistributedDL):
    """A rank's share of the images of an `ImageDL`, in batches of its size.

    fastai's `DistributedDL` asks the dataset for the number of inputs, sends indices through a GPU, and derives its length
    from that of the whole loader.
    """
    _default = 'dl'

    @property
    def n_inp(self) -> int: return self.dl.n_inp

    def __len__(self) -> int:
        share = -(-self.dl.n // self.world_size)
        return share // self.bs if self.drop_last else -(-share // self.bs)

    def before_iter(self):
        super().before_iter()
        self.fake_l.num_workers = self.dl.fake_l.num_workers  # none where its images are on a device

    def _broadcast(self, t: list, rank: int) -> list:
        device = 'cuda' if torch.distributed.get_backend() == 'nccl' else 'cpu'
        idxs = torch.tensor(t, device=device)
        torch.distributed.broadcast(idxs, rank)
        return idxs.tolist()


class EpisodicDistributedDL(ImageDistributedDL):
    """A rank's share of the episodes of an `EpisodicDL`: with two ranks, the first has episodes 0, 2, 4, …, the second 1, 3, 5, …

    So a step of all ranks takes the episodes that come next in one process, and what is gathered from them is in the order of
    the episodes. In the last step, ranks without an episode of their own repeat the first ones; `to_detach` drops the repeats
    from what it gathers, so that statistics count each episode once.
    """
    @property
    def epoch(self) -> int: return self.dl.epoch
    @epoch.setter
    def epoch(self, n: int): self.dl.epoch = n

    def get_idxs(self) -> list:
        idxs = list(self.dl.get_idxs())  # every rank knows the episodes from (seed, epoch, k)
        self.n = len(idxs)
        return [idxs[k % self.n] for k in range(self.rank, len(self) * self.world_size, self.world_size)]

    def after_batch(self, b):
        self.i += 1
        return self.dl.after_batch(b)

    def to_detach(self, b: Any, cpu: bool = True, gather: bool = True) -> Any:
        "`b` detached and, from all ranks, gathered in the order of the episodes: rows one after the other, scalars as their mean"
        if not gather or not hasattr(self, 'n'): return self._to_detach(b, cpu, gather)
        ranks = min(self.world_size, self.n - (self.i - 1) * self.world_size)

        def of_episodes(t: Any) -> Any:
            if not isinstance(t, Tensor): return t
            rows = self._to_detach(t if t.ndim else t[None], cpu, True)
            rows = rows[:len(rows) * ranks // self.world_size]
            return rows if t.ndim else rows.mean()
        return apply(of_episodes, b)
