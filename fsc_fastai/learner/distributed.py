"`learn.distrib_ctx`: training and evaluation in several processes"
# fastai.distributed imports accelerate, which most sessions do without: it is imported when it is asked for.
from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fastai.torch_core import num_distrib, rank_distrib
from fastcore.basics import patch
from torch import Tensor

from ..extras import extra
from .learner import FSCLearner

__all__: list[str] = []

_LOST = re.compile('timed? ?out|connection (was )?(closed|reset)|broken pipe', re.IGNORECASE)
"How torch's backends say that another rank does not answer"


def share_of(
    learn: FSCLearner, # A learner, inside or outside its `distrib_ctx`
) -> tuple[int, int]:
    "This process's share of the work, (rank, number of ranks); (0, 1) if nothing is shared"
    shared = num_distrib() > 1 and hasattr(learn, 'episode_distributed_trainer')
    return (rank_distrib(), num_distrib()) if shared else (0, 1)


def own_part(
    n: int, # Number of tasks
    share: tuple[int, int], # Share of the work, see `share_of`
) -> slice:
    "The consecutive tasks of this process, so that the results of all ranks, concatenated, are in order"
    rank, ranks = share
    return slice(n * rank // ranks, n * (rank + 1) // ranks)


def joined(
    part: Tensor, # Results of this process `(n, …)`
    share: tuple[int, int], # Share of the work, see `share_of`
) -> Tensor:
    "The results of all processes, concatenated by rank"
    if share[1] == 1: return part
    sizes = torch.zeros(share[1], dtype=torch.int64, device=part.device)
    sizes[share[0]] = len(part)
    torch.distributed.all_reduce(sizes)
    starts = [0, *sizes.cumsum(0).tolist()]
    whole = part.new_zeros(starts[-1], *part.shape[1:])
    whole[starts[share[0]]:starts[share[0] + 1]] = part
    torch.distributed.all_reduce(whole)  # each entry is some rank's, and zero in all others
    return whole


@patch
def to_distributed(
    self: FSCLearner,
    sync_bn: bool = False, # Batch norms see the episodes of all ranks; only on GPUs
    timeout: float = 1800., # Seconds that a rank waits for the others
    **kwargs: Any, # For accelerate's `Accelerator`, such as `cpu=True`
) -> FSCLearner:
    """Share training, validation and `evaluate` with the other processes that `torchrun` or `accelerate launch` started.

    Moves model and loaders to the device of this process. Raises `ImportError` without accelerate.
    """
    with extra('distributed'):
        from ..callback.rank_trainer import EpisodeDistributedTrainer
    trainer = EpisodeDistributedTrainer(sync_bn, timeout, **kwargs)
    self.add_cb(trainer)
    self.dls.device = trainer.accelerator.device
    self.model.to(trainer.accelerator.device)
    if rank_distrib() and hasattr(self, 'progress'):
        trainer.progress = self.progress
        self.remove_cb(trainer.progress)
    return self


@patch
def detach_distributed(self: FSCLearner) -> FSCLearner:
    "Undo `to_distributed`"
    from ..callback.rank_trainer import EpisodeDistributedTrainer
    for cb in [cb for cb in self.cbs if isinstance(cb, EpisodeDistributedTrainer)]:
        cb.leave()
        self.remove_cb(cb)
        if cb.progress is not None: self.add_cb(cb.progress)
    return self


@patch
@contextmanager
def distrib_ctx(
    self: FSCLearner,
    sync_bn: bool = False, # Batch norms see the episodes of all ranks; only on GPUs
    timeout: float = 1800., # Seconds that a rank waits for the others
    **kwargs: Any, # For accelerate's `Accelerator`, such as `cpu=True`
) -> Iterator[FSCLearner]:
    """A context in which all processes share training, validation and `evaluate`; in a single process it changes nothing.

        with learn.distrib_ctx():
            learn.fine_tune(5)
            table = learn.evaluate()

    Every process runs the whole script, on GPUs or CPUs, on one machine or several:

        torchrun --nproc_per_node 2 train.py
        torchrun --nnodes 4 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint first_machine:29500 train.py

    On GPUs `accelerate launch train.py` works, too. A step averages the gradients of one episode per rank, so an epoch of
    n_episodes has n_episodes / ranks steps. Only the first rank shows progress and exports.

    Raises `ConnectionError` when another rank has ended, or has not answered for `timeout` seconds, which the first context of a
    process sets. (On GPUs NCCL then ends the process itself.)
    """
    try:
        if num_distrib() > 1: self.to_distributed(sync_bn, timeout, **kwargs)
        yield self
    except RuntimeError as e:
        if num_distrib() < 2 or not _LOST.search(str(e)): raise
        raise ConnectionError(f'rank {rank_distrib()} of {num_distrib()} waited for another that has ended, or has stood still '
                              f'for {timeout:g} s: see what that one says, or give it more time by distrib_ctx(timeout=…). '
                              f'({str(e).splitlines()[-1]})') from e
    finally:
        if num_distrib() > 1: self.detach_distributed()
