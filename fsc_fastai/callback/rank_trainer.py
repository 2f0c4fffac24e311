"Training in several processes, which share the episodes and keep the same model"
from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from fastai.distributed import DistributedDL, DistributedTrainer
from fastai.torch_core import num_distrib
from torch import nn

from ..data.rank_loaders import EpisodicDistributedDL, ImageDistributedDL

__all__ = ['EpisodeDistributedTrainer']


class EpisodeDistributedTrainer(DistributedTrainer):
    """fastai's `DistributedTrainer` for episodes, which `learn.distrib_ctx` adds.

    A step averages the gradients of one episode per rank. Batch norms see the episode of their own rank, unless `sync_bn`;
    their running statistics are averaged over the ranks after each training epoch.
    """
    def __init__(self,
        sync_bn: bool = False, # Batch norms see the episodes of all ranks; only on GPUs
        timeout: float = 1800., # Seconds that a rank waits for the others
        **kwargs: Any, # For accelerate's `Accelerator`; cpu=True to leave GPUs alone
    ):
        device = torch.accelerator.current_accelerator(check_available=True)
        kwargs.setdefault('cpu', device is None or device.type == 'mps')  # where accelerate would start no processes
        handlers = list(kwargs.pop('kwargs_handlers', None) or [])
        if not any(isinstance(h, DistributedDataParallelKwargs) for h in handlers):
            handlers.append(DistributedDataParallelKwargs(broadcast_buffers=False))  # their mean knows all episodes
        if not any(isinstance(h, InitProcessGroupKwargs) for h in handlers):
            handlers.append(InitProcessGroupKwargs(timeout=timedelta(seconds=timeout)))
        super().__init__(sync_bn, kwargs_handlers=handlers, **kwargs)
        self.settings, self.wrapped = dict(sync_bn=sync_bn, kwargs_handlers=handlers, **kwargs), False
        self.progress: Any = None # callback of the learner, which only the first rank keeps
        if self.accelerator.num_processes != num_distrib():
            raise RuntimeError(f'{num_distrib()} processes were started, accelerate has {self.accelerator.num_processes}: '
                               'make no Accelerator before this one, and on CPUs pass cpu=True')
        if sync_bn and self.accelerator.device.type != 'cuda':
            raise ValueError(f'sync_bn=True needs GPUs, this process trains on {self.accelerator.device}: leave it False')

    def again(self) -> EpisodeDistributedTrainer:
        "A trainer with the same settings for another learner"
        return type(self)(**self.settings)

    def before_fit(self):
        self.leave()  # an error may have ended the last fit in the middle
        self.logger = self.learn.logger
        super().before_fit()
        self.wrapped = True

    def _wrap_dl(self, dl: Any) -> Any:
        if isinstance(dl, DistributedDL): return dl
        wrapper = EpisodicDistributedDL if hasattr(dl, 'n_episodes') else ImageDistributedDL
        return wrapper(dl, device=self.accelerator.device)

    def after_train(self): average_buffers(self.learn.model)

    def after_fit(self): self.leave()

    def leave(self) -> None:
        "Give the learner back its model, loaders and logger as they were before the fit"
        if not self.wrapped: return
        super().after_fit()
        self.learn.logger, self.wrapped = self.logger, False


@torch.no_grad()
def average_buffers(
    model: nn.Module, # The same model in all processes
) -> None:
    "Replace the running statistics of a model by their mean over all processes"
    for b in model.buffers():
        if not b.is_floating_point(): continue
        torch.distributed.all_reduce(b)
        b /= num_distrib()
