"Whole episodes shared among ranks"
from __future__ import annotations

from typing import Any

from fastai.distributed import DistributedDL
from fastai.torch_core import apply

__all__ = ['EpisodicDistributedDL']


class EpisodicDistributedDL(DistributedDL):
    """A rank's share of the episodes of an `EpisodicDL`.

    fastai's `DistributedDL` asks the dataset for the number of inputs, sends indices to a GPU, and counts images where these are
    episodes. The last ranks repeat the first episodes where their number does not divide; `to_detach` drops the repeats from
    what it gathers, so that statistics count each episode once (scalars are averaged over the ranks as they are).
    """
    _default = 'dl'

    @property
    def n_inp(self) -> int: return self.dl.n_inp

    @property
    def epoch(self) -> int: return self.dl.epoch
    @epoch.setter
    def epoch(self, n: int): self.dl.epoch = n

    def _broadcast(self, t: list, rank: int) -> list:
        return t  # every rank knows the episodes from (seed, epoch, k)

    def after_batch(self, b):
        self.i += 1
        return self.dl.after_batch(b)

    def to_detach(self, b: Any, cpu: bool = True, gather: bool = True) -> Any:
        "`b` detached and gathered from all ranks, without the rows of repeated episodes"
        b = self._to_detach(b, cpu, gather)
        if not gather or not hasattr(self, 'n_padded'): return b
        share = self.n_padded // self.world_size
        ranks = sum(r * share + self.i - 1 < self.n for r in range(self.world_size))
        return apply(lambda t: t[:len(t) * ranks // self.world_size] if t.ndim else t, b)
