"fastai's own callbacks among episodes: some would misread one and are refused, some need an episode where they expect an image"
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastai.callback.core import Callback
from fastai.learner import Learner
from fastcore.foundation import L

__all__ = ['adapted', 'untracked']

HALF = 'turns the whole model into half precision, in which relevance is lost: use learn.to_fp16() or learn.to_bf16()'
RECURRENT = 'is for recurrent networks, and no few-shot method here is one: leave it out'
RANKS = 'cuts an episode into pieces: use `with learn.distrib_ctx():`, where each process has whole episodes'
EMBEDDINGS = ('expects one image and one label a row: give encode_images(learn.model, dl.images()) to the '
              '`add_embedding` of a SummaryWriter')
REFUSED = dict(
    MixHandler='mixes images with their labels, which only hold within their episode: use batch_tfms for augmentation',
    GradientAccumulation='counts the queries of an episode as items: use EpisodeAccumulation(n_acc=episodes)',
    ModelToHalf=HALF, NonNativeMixedPrecision=HALF, ModelResetter=RECURRENT, RNNCallback=RECURRENT, RNNRegularizer=RECURRENT,
    ParallelTrainer=RANKS, DistributedTrainer=RANKS, TensorBoardProjectorCallback=EMBEDDINGS)
"By name, because some are in modules that need packages of their own: what is wrong with them, and what to use"

RECORDS = {'TrackerCallback', 'CSVLogger', 'ShowGraphCallback', 'TensorBoardBaseCallback', 'WandbCallback', 'CometCallback',
           'AzureMLCallback', 'FetchPredsCallback'}
"Those that write down a training, load the best of it when it ends, or ask for predictions, which `validate` keeps locked"

NOT_EXPORTED = dict(CSVLogger=('file', 'old_logger'), TensorBoardBaseCallback=('writer',),
                    WandbCallback=('valid_dl',))
"What they hold during a fit and no file can: open files, writers, loaders"


def _kinds(cb: Callback | type[Callback]) -> list[str]:
    "Names of the classes that a callback is of; those of ours know episodes, whatever they are made from"
    classes = cb.__mro__ if isinstance(cb, type) else type(cb).__mro__
    ours = next((i for i, c in enumerate(classes) if c.__module__.startswith('fsc_fastai')), len(classes))
    return [c.__name__ for c in classes[:ours]]


def adapted(
    cb: Callback | type[Callback], # Of fastai, of ours, or of the user
    learn: Any, # The learner that it is for
) -> Callback:
    "The callback, made ready for episodes. Raises `TypeError` with what to use where it would misread them"
    for kind in _kinds(cb):
        if kind in REFUSED: raise TypeError(f'{cb.__name__ if isinstance(cb, type) else cb} {REFUSED[kind]}')
    if isinstance(cb, type): cb = cb()
    for kind in _kinds(cb):
        if kind == 'TensorBoardCallback' and cb.trace_model:
            raise TypeError(f'{cb} can draw the graph of models with one input, here they have three: pass trace_model=False')
        if kind == 'TensorBoardCallback' and cb.projector: raise TypeError(f'{cb} with projector=True {EMBEDDINGS}')
        if kind == 'WandbCallback' and cb.log_preds and not getattr(cb, 'valid_dl', None):
            cb.valid_dl = learn.dls.valid.new(n_episodes=1)
        if kind in NOT_EXPORTED: cb._stateattrs = tuple({*cb._stateattrs, *NOT_EXPORTED[kind]})
    return cb


@contextmanager
def untracked(
    learn: Learner, # Any
) -> Iterator[None]:
    "Inside, callbacks that keep the records of a training take no part: they would overwrite them, or load other weights"
    before = L(learn.cbs)
    learn.remove_cbs(removed := [cb for cb in before if RECORDS & {*_kinds(cb)}])
    try: yield
    finally:
        learn.add_cbs(removed)
        learn.cbs = before
