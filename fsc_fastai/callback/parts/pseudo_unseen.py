"Episodes of pseudo-unseen domains: which domain is next, and its next episode"
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from fastai.data.core import DataLoaders

from ...data.sampler import check_whole

__all__ = ['PseudoUnseen', 'Every']

Every = Literal['epoch', 'step', 'all']
"When a pseudo-unseen domain is drawn: each epoch or each step; 'all' uses all domains in every step"


class PseudoUnseen:
    """The pseudo-unseen domains, and their episodes for each step.

    The episodes of an epoch depend only on the seed and the number of the epoch, so a resumed training sees the same ones.
    Raises `TypeError` for loaders without episodes, and `ValueError` without any domain.
    """
    def __init__(self,
        domains: Any, # `DataLoaders` or loaders of episodes, in a list or in a dict by name
        every: Every = 'epoch', # Draw a domain each 'epoch' or 'step', or use 'all' in every step
        seed: int = 0, # Seed of the choice of domains
    ):
        check_whole('seed', seed)
        if every not in get_args(Every): raise ValueError(f'every={every!r}: choose from {get_args(Every)}')
        if isinstance(domains, DataLoaders) or hasattr(domains, 'n_inp'): domains = [domains]
        named = domains.items() if isinstance(domains, Mapping) else ((str(i), domain) for i, domain in enumerate(domains))
        self.sources = dict(named)
        self.loaders = {name: _loader(name, domain) for name, domain in self.sources.items()}
        if not self.loaders: raise ValueError('pseudo_unseen is empty: the transformations are learned on at least one domain '
                                              'besides the one trained on; FTCallback needs none')
        self.every, self.seed = every, seed
        self.passes = dict.fromkeys(self.loaders, 0)
        self.epoch, self.running = 0, dict[str, Iterator]()

    def check(self, dls: DataLoaders) -> None:
        "Raise `ValueError` for a domain that is the training domain `dls`, or whose episodes cannot be drawn"
        for name, loader in self.loaders.items():
            source = self.sources[name]
            if source is dls or any(source is dl or loader.dataset is getattr(dl, 'dataset', None) for dl in dls.loaders[:1]):
                raise ValueError(f'pseudo-unseen domain {name} is the domain that the model is trained on: give another one')
            try: getattr(loader, 'sampler', None)  # an episodic loader draws nothing before it knows its classes
            except ValueError as e: raise ValueError(f'pseudo-unseen domain {name}: {e}') from e

    def start_epoch(self) -> None:
        "Discard what is left of the last epoch"
        self.running.clear()

    def end_epoch(self) -> None:
        "Count the epoch; the next one draws new episodes"
        self.epoch += 1

    def episodes(self,
        step: int, # Number of the step in its epoch
    ) -> Iterator[tuple]:
        "The batches of a step: one of the drawn domain, or one of every domain"
        names = list(self.loaders)
        if self.every != 'all':
            key = [self.seed, self.epoch] + ([step] if self.every == 'step' else [])
            names = [names[np.random.default_rng(key).integers(len(names))]]
        for name in names: yield self._next(name)

    def __len__(self) -> int: return len(self.loaders) if self.every == 'all' else 1

    def _next(self, name: str) -> tuple:
        for _ in range(2):
            if name not in self.running: self.running[name] = self._new_pass(name)
            batch = next(self.running[name], None)
            if batch is not None: return batch
            del self.running[name]
        raise ValueError(f'pseudo-unseen domain {name} gives no episodes')

    def _new_pass(self, name: str) -> Iterator[tuple]:
        loader, n = self.loaders[name], self.passes[name]
        # ranks draw different episodes
        if hasattr(loader, 'epoch'): loader.epoch = n * world_size() + (torch.distributed.get_rank() if world_size() > 1 else 0)
        self.passes[name] += 1
        return iter(loader)

    def state_dict(self) -> dict[str, Any]:
        "The position in the episodes, between two epochs"
        return dict(epoch=self.epoch, passes=dict(self.passes))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        "Restore a state; domains are identified by name"
        self.epoch = state['epoch']
        self.passes |= {name: n for name, n in state['passes'].items() if name in self.passes}


def world_size() -> int:
    "Number of processes of a distributed training"
    return torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1


def _loader(name: str, domain: Any) -> Any:
    "The loader of a domain's episodes; an episodic one that would repeat its episodes is copied to draw new ones each pass"
    loader = domain.train if isinstance(domain, DataLoaders) else domain
    if hasattr(loader, 'n_episodes'): return loader.new(shuffle=True)
    if isinstance(loader, Iterable): return loader
    raise TypeError(f'pseudo-unseen domain {name} is a {type(domain).__name__}: give DataLoaders or a loader of episodes')
