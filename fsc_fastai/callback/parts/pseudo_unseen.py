"Episodes of pseudo-unseen domains: which domain's turn it is, and its next episode"
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from fastai.data.core import DataLoaders

from ...data.sampler import check_whole

__all__ = ['PseudoUnseen', 'Every']

Every = Literal['epoch', 'step', 'all']
"When another pseudo-unseen domain is drawn: each epoch, each step, or never because every step uses all"


class PseudoUnseen:
    """The pseudo-unseen domains and the episodes that they give, step by step.

    An epoch's episodes depend on (seed, number of the epoch) alone, so that a resumed training sees the same ones.
    Raises `TypeError` for something that gives no episodes, `ValueError` for no domain at all.
    """
    def __init__(self,
        domains: Any, # `DataLoaders` or loaders of episodes, in a list or in a dict by name
        every: Every = 'epoch', # Draw the domain each 'epoch' or 'step', or use 'all' in every step
        seed: int = 0, # Of the choice of domains
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
        "`ValueError` for a domain that is the one trained on (`dls`), or whose episodes cannot be drawn"
        for name, loader in self.loaders.items():
            source = self.sources[name]
            if source is dls or any(source is dl or loader.dataset is getattr(dl, 'dataset', None) for dl in dls.loaders[:1]):
                raise ValueError(f'pseudo-unseen domain {name} is the domain that the model is trained on: give another one')
            try: getattr(loader, 'sampler', None)  # an episodic loader draws nothing before it knows its classes
            except ValueError as e: raise ValueError(f'pseudo-unseen domain {name}: {e}') from e

    def start_epoch(self) -> None:
        "Forget what is left of the last epoch's passes"
        self.running.clear()

    def end_epoch(self) -> None:
        "Count the epoch: the next one draws anew"
        self.epoch += 1

    def episodes(self,
        step: int, # Number of the step in its epoch
    ) -> Iterator[tuple]:
        "The batches that a step learns from: one of the domain whose turn it is, or one of every domain"
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
        "Where the episodes are, between two epochs"
        return dict(epoch=self.epoch, passes=dict(self.passes))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        "Go on from what `state_dict` returned; domains are told apart by name"
        self.epoch = state['epoch']
        self.passes |= {name: n for name, n in state['passes'].items() if name in self.passes}


def world_size() -> int:
    "Number of processes that train together"
    return torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1


def _loader(name: str, domain: Any) -> Any:
    "The loader of a domain's episodes; an episodic one that would repeat its episodes is copied to draw new ones each pass"
    loader = domain.train if isinstance(domain, DataLoaders) else domain
    if hasattr(loader, 'n_episodes'): return loader.new(shuffle=True)
    if isinstance(loader, Iterable): return loader
    raise TypeError(f'pseudo-unseen domain {name} is a {type(domain).__name__}: give DataLoaders or a loader of episodes')
