"The domains of an evaluation: loaders, episodes, and feature maps of the images"
from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from ..bars import Bar
from ..data.episode_loader import EpisodicDL
from ..data.sampler import Count, EpisodeSampler, check_whole
from .distributed import joined, own_part, share_of
from .episode_scores import encode_images
from .learner import FSCLearner

__all__ = ['encode_domain', 'named_domains', 'tested_domains']


def encode_domain(
    learn: FSCLearner, # The learner with the encoder
    dl: EpisodicDL, # Loader of the domain
    bar: Bar, # Progress bar, which advances by the images
    bs: int = 64, # Images per batch
) -> Tensor:
    "Feature maps of every image of a domain `(n_images, C, H, W)`; ranks share whole batches"
    share, n = share_of(learn), len(dl.items)
    watched = partial(bar.through, each=bs * share[1], worth=n)
    if share[1] == 1: return encode_images(learn.model, watched(dl.images(bs)))
    batches = own_part(-(-n // bs), share)
    own = dl.images(bs, idxs=range(n)[batches.start * bs:batches.stop * bs])
    if len(own): return joined(encode_images(learn.model, watched(own)), share)
    return joined(encode_images(learn.model, dl.images(bs, idxs=[0]))[:0], share)  # fewer batches than ranks


def named_domains(
    learn: FSCLearner, # The learner, whose domains are the default
    domains: Any, # Domains as for `learn.evaluate`
) -> dict[str, EpisodicDL]:
    "Loaders by the name of the domain: those of the learner, or made from paths and loaders"
    if domains is not None: return learn.dls.as_domains(domains)
    if learn.dls.domains: return learn.dls.domains
    raise ValueError('a test needs domains: pass {name: folder}, or build the loaders with dls.with_domains(...)')


def tested_domains(
    learn: FSCLearner, # The learner, whose validation sets the defaults
    domains: Any, # Domains as for `learn.evaluate`
    n_episodes: int, # Episodes per domain
    n_way: Count | None, # Classes per episode; None: as in validation
    n_shot: Count | None, # Support images per class; None: as in validation
    n_query: Count, # Queries per class
    seed: int, # Seed of the episodes
) -> list[tuple[str, EpisodicDL, EpisodeSampler]]:
    "Name, loader and sampler of each domain"
    check_whole('n_episodes', n_episodes, least=1)
    n_way = learn.dls.valid.n_way if n_way is None else n_way
    n_shot = learn.dls.valid.n_shot if n_shot is None else n_shot
    named = named_domains(learn, domains)
    for dl in named.values(): dl.check_distinct()
    samplers = [EpisodeSampler(dl.labels, n_way, n_shot, n_query, seed, dl.drop_small, dl.vocab, f'domain {name!r}')
                for name, dl in named.items()]
    return list(zip(named, named.values(), samplers, strict=True))
