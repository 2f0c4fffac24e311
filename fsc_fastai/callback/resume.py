"Continue an interrupted training as if nothing had happened"
from __future__ import annotations

import json
import logging
import os
import random
import warnings
from dataclasses import is_dataclass
from hashlib import sha256
from inspect import signature
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from fastai.callback.core import Callback, CancelEpochException
from fastai.callback.schedule import ParamScheduler
from fastai.torch_core import get_model, num_distrib, rank_distrib
from fastcore.foundation import L

from ..files import atomic_write, broken, check_made
from .order import RESUME

__all__ = ['ResumeFit', 'callbacks_with_state', 'rng_state', 'set_rng_state']

log = logging.getLogger(__name__)


# fastai's optimizer keeps its hyper-parameters in these; nothing else than plain types and tensors is read
_OPTIMIZER_TYPES: list[Any] = [L, np.float64().__reduce__()[0], np.dtype,
                               *(getattr(np.dtypes, name) for name in np.dtypes.__all__)]
# of these modules, callbacks change a training; of the next, they do not, or the schedule says how; of others that is not known
_TRAINING = ('fsc_fastai.callback', 'fastai.callback.training', 'fastai.callback.fp16', 'fastai.callback.mixup')
_WATCHING = ('fsc_fastai.learner.progress', 'fastai.callback.progress', 'fastai.callback.core', 'fastai.callback.schedule',
             'fastai.learner')
_EPISODES = ('n_way', 'n_shot', 'n_query', 'n_episodes', 'seed', 'drop_small', 'bs')


def rng_state() -> dict[str, Any]:
    "The states of all random number generators of a training"
    name, keys, pos, has_gauss, gauss = cast(tuple, np.random.get_state())  # noqa: NPY002  fastai draws from it
    return dict(python=random.getstate(), torch=torch.get_rng_state(), cuda=torch.cuda.get_rng_state_all(),
                numpy=(name, torch.from_numpy(keys.astype(np.int64)), pos, has_gauss, gauss))


def set_rng_state(state: dict[str, Any]) -> None:
    "Restore what `rng_state` returned"
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state['python'])
    torch.set_rng_state(state['torch'].cpu())
    here = state['cuda'][:torch.cuda.device_count()]  # a training may go on where there are fewer devices, or none
    if here: torch.cuda.set_rng_state_all([s.cpu() for s in here])


def callbacks_with_state(
    learn: Any, # A fastai `Learner`
) -> dict[str, Any]:
    "Callbacks with `state_dict` and `load_state_dict`, by name"
    # of their class: an attribute that a callback lacks is looked up in the learner, and then in the model
    return {cb.name: cb for cb in learn.cbs if hasattr(type(cb), 'load_state_dict')}


def _shared(value: Any) -> Any:
    "What the first rank has, in every rank"
    if num_distrib() < 2: return value
    torch.distributed.broadcast_object_list(box := [value])
    return box[0]


def _of_all_ranks(value: Any) -> list[Any]:
    "What each rank has, in the order of the ranks"
    if num_distrib() < 2: return [value]
    torch.distributed.all_gather_object(values := [None] * num_distrib(), value)
    return values


def _plain(value: Any) -> Any:
    "A setting as a value that can be written and compared"
    if value is None or isinstance(value, bool | int | float | str): return value
    if isinstance(value, list | tuple): return [_plain(o) for o in value]
    return repr(value) if is_dataclass(value) and ' at 0x' not in repr(value) else type(value).__name__


def _described(cb: Callback) -> str:
    "A callback with the arguments that it was made with, as far as it keeps them"
    args = {name: vars(cb)[name] for name in signature(type(cb).__init__).parameters if name in vars(cb)}
    return f'({", ".join(f"{k}={_plain(v)}" for k, v in args.items())})'


class ResumeFit(Callback):
    """Save the state of the training after each epoch. If the file exists at the start of a fit, continue from it.

    The resumed training ends with the same weights as an uninterrupted one, bit for bit on a CPU, and on a GPU if its algorithms
    are deterministic (`set_seed(…, reproducible=True)`). It may continue on another device, whose random numbers and rounding
    differ. Callbacks with `state_dict` and `load_state_dict` are included. One file serves several fits of a learner, such as the
    two of `fine_tune`; finished ones are not repeated. Several ranks share the file. It is always whole, even after a kill. Does
    nothing in `lr_find`.

    Raises `ValueError`, which names the file, if it is broken or belongs to another training, and says what differs: schedule,
    epochs, seeds, episodes, model, optimizer or callbacks. Warns of callbacks that may matter. Raises `OSError` if the file
    cannot be written.

        learn.fit_one_cycle(20, cbs=ResumeFit('training.pt'))
    """
    order = RESUME

    def __init__(self,
        file: str | os.PathLike, # File of the state
        every: int = 1, # Epochs from one save to the next
        of: Any = None, # Plain values that must be the same to continue, such as a description of the data
    ):
        self.file, self.every, self.of = Path(file), every, of
        self.past: list[dict[str, Any]] = []  # what is known of the fits that are over

    def __reduce__(self): return type(self), (self.file, self.every, self.of)  # for a learner that is exported

    def before_fit(self):
        self.run = not hasattr(self.learn, 'lr_finder')  # fastai sets it again after each fit
        if not self.run: return
        self.start = self.saved = 0
        self.made, self.watchers = _shared((self._made(), self._watchers()))
        state = self._read()
        if state is None or len(state['fits']) <= len(self.past): return
        there = state['fits'][len(self.past)]
        check_made(self.file, there['made'], self.made)
        if there['watchers'] != self.watchers:
            warnings.warn(f'{self.file} was written beside {there["watchers"]}, now it is beside {self.watchers}: where these '
                          'change the training, it is not the same any more', stacklevel=2)
        if len(state['fits']) == len(self.past) + 1: self._load(state)
        else:  # a fit that is over, whose successor's state is in the file
            self.start = self.saved = self.n_epoch
            self.opt.set_hypers(**there['hypers'])
        if self.start == self.n_epoch and rank_distrib() == 0:
            log.warning(f'{self.file} has all {self.n_epoch} epochs of fit {len(self.past) + 1}: nothing is left to train')

    def before_epoch(self):
        if self.epoch < self.start: raise CancelEpochException

    def after_epoch(self):
        if self.epoch >= self.start and (self.epoch + 1) % self.every == 0: self._save(self.epoch + 1)

    def after_fit(self):
        # the last epochs, or those that a callback left out
        if self.saved < self.n_epoch: self._save(self.n_epoch)
        self.past.append(self._fit_state())

    def _made(self) -> dict[str, Any]:
        "What the training is of, as plain values"
        opt, train = self.opt, self.dls.train
        optimizer = type(getattr(opt, 'opt', opt))  # or the one that it goes on for
        schedule = {k: [_rates(f(x)) for x in np.linspace(0, 1, 11)]
                    for cb in self.learn.cbs if isinstance(cb, ParamScheduler) for k, f in cb.scheds.items()}
        model = get_model(self.model)
        shapes = repr([(k, tuple(v.shape)) for k, v in model.state_dict().items()])
        return dict(
            epochs=self.n_epoch, schedule=schedule, hypers={k: v for k, v in _hypers(opt).items() if k not in schedule},
            optimizer=getattr(optimizer, 'resumes', optimizer.__name__), frozen=opt.frozen_idx, ranks=num_distrib(),
            model=f'{type(model).__name__} {sha256(shapes.encode()).hexdigest()[:8]}',
            loss=getattr(self.loss_func, '__qualname__', type(self.loss_func).__name__), seed=torch.initial_seed(),
            episodes={k: _plain(getattr(train, k)) for k in _EPISODES if hasattr(train, k)},
            batches=len(train), images=len(train.dataset), of=self.of,
            callbacks={type(cb).__name__: _described(cb) for cb in self.learn.cbs if self._matters(cb)})

    def _matters(self, cb: Callback) -> bool:
        return type(cb).__module__.startswith(_TRAINING) and cb is not self or cb.name in callbacks_with_state(self.learn)

    def _watchers(self) -> list[str]:
        "Callbacks of which it is not known whether they change the training"
        return sorted(type(cb).__name__ for cb in self.learn.cbs
                      if not self._matters(cb) and cb is not self and not type(cb).__module__.startswith(_WATCHING))

    def _fit_state(self) -> dict[str, Any]:
        return dict(made=self.made, watchers=self.watchers, hypers=_hypers(self.opt))

    def _save(self, done: int) -> None:
        "Write everything, after so many epochs of this fit"
        rng, error, scaler, train = _of_all_ranks((rng_state(), self._loader_rng())), None, self._loss_scaler(), self.dls.train
        if rank_distrib() == 0:
            state = dict(fits=json.dumps([*self.past, self._fit_state()]), done=done, rng=rng,
                         model=get_model(self.model).state_dict(), opt=self.opt.state_dict(),
                         scaler=None if scaler is None else scaler.state_dict(), loader_epoch=getattr(train, 'epoch', None),
                         callbacks={k: cb.state_dict() for k, cb in callbacks_with_state(self.learn).items()})
            torch.save(state, buffer := BytesIO())
            try:
                with atomic_write(self.file) as part, part.open('wb') as file:
                    file.write(sha256(buffer.getbuffer()).hexdigest().encode() + b'\n')
                    file.write(buffer.getbuffer())
            except OSError as e: error = e
        if (error := _shared(error)) is not None: raise error
        self.saved = done

    def _read(self) -> dict[str, Any] | None:
        "What is in the file; the first rank reads it for all, since it may be on another machine's disk"
        content = _shared(self.file.read_bytes() if rank_distrib() == 0 and self.file.exists() else None)
        if content is None: return None
        digest, _, saved = content.partition(b'\n')
        if sha256(saved).hexdigest().encode() != digest: raise broken(self.file, ValueError('its content is not what was saved'))
        with torch.serialization.safe_globals(_OPTIMIZER_TYPES):
            state = torch.load(BytesIO(saved), map_location=next(self.model.parameters()).device, weights_only=True)
        return state | dict(fits=json.loads(state['fits']))

    def _load(self, state: dict[str, Any]) -> None:
        "Put everything back to where this fit was"
        get_model(self.model).load_state_dict(state['model'])
        self.opt.load_state_dict(state['opt'])
        for name, cb in callbacks_with_state(self.learn).items(): cb.load_state_dict(state['callbacks'][name])
        rng, loader_rng = state['rng'][rank_distrib()]
        if state['loader_epoch'] is not None: self.dls.train.epoch = state['loader_epoch']
        if loader_rng is not None: self.dls.train.rng.setstate(loader_rng)
        if state['scaler'] and (scaler := self._loss_scaler()): scaler.load_state_dict(state['scaler'])
        set_rng_state(rng)
        self.start = self.saved = state['done']
        self.learn.train_iter = self.start * len(self.dls.train)

    def _loader_rng(self) -> Any:
        "The state of the generator by which fastai's loaders shuffle"
        rng = getattr(self.dls.train, 'rng', None)
        return None if rng is None else rng.getstate()

    def _loss_scaler(self) -> Any:
        "That of fastai's mixed precision, None without it"
        mixed = getattr(self.learn, 'mixed_precision', None)
        return None if mixed is None else mixed.scaler


def _rates(value: Any) -> Any:
    "What a schedule says at a moment: a number, one for each parameter group, or fastai's slice from the first group to the last"
    return [value.start, value.stop] if isinstance(value, slice) else np.asarray(value).tolist()


def _hypers(opt: Any) -> dict[str, list[float]]:
    "The optimizer's numbers, a list over its parameter groups each"
    return {k: [h[k] for h in opt.hypers] for k, v in opt.hypers[0].items() if isinstance(v, int | float)}
