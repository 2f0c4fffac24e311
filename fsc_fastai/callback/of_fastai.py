"fastai's own callbacks with episodes: those that would misread an episode are refused, others are adapted"
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
"Refused callbacks by name (some need packages of their own): what is wrong with them, and what to use instead"

RECORDS = {'TrackerCallback', 'CSVLogger', 'ShowGraphCallback', 'TensorBoardBaseCallback', 'WandbCallback', 'CometCallback',
           'AzureMLCallback', 'FetchPredsCallback'}
"Callbacks that record a training, load its best weights at the end, or ask for predictions: `validate` removes them"

NOT_EXPORTED = dict(CSVLogger=('file', 'old_logger'), TensorBoardBaseCallback=('writer',),
                    WandbCallback=('valid_dl',))
"Attributes that cannot be exported: open files, writers, loaders"


def _kinds(cb: Callback | type[Callback]) -> list[str]:
    "Names of the classes that a callback is of; those of ours know episodes, whatever they are made from"
    classes = cb.__mro__ if isinstance(cb, type) else type(cb).__mro__
    ours = next((i for i, c in enumerate(classes) if c.__module__.startswith('fsc_fastai')), len(classes))
    return [c.__name__ for c in classes[:ours]]


def adapted(
    cb: Callback | type[Callback], # Any callback
    learn: Any, # The learner that it is added to
) -> Callback:
    "The callback, adapted to episodes. Raises `TypeError` if it would misread them, and says what to use instead"
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
    learn: Learner, # Any learner
) -> Iterator[None]:
    "Without callbacks that record a training inside the block: they would overwrite their records or load other weights"
    before = L(learn.cbs)
    learn.remove_cbs(removed := [cb for cb in before if RECORDS & {*_kinds(cb)}])
    try: yield
    finally:
        learn.add_cbs(removed)
        learn.cbs = before
