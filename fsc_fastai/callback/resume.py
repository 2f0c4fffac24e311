"Go on with a training that was cut off, as if nothing had happened"
from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from fastai.callback.core import Callback, CancelEpochException
from fastcore.foundation import L

from ..files import atomic_write

__all__ = ['ResumeFit', 'callbacks_with_state', 'rng_state', 'set_rng_state']


# fastai's optimizer keeps its hyper-parameters in these; nothing else than plain types and tensors is read
_OPTIMIZER_TYPES: list[Any] = [L, np.float64().__reduce__()[0], np.dtype,
                               *(getattr(np.dtypes, name) for name in np.dtypes.__all__)]


def rng_state() -> dict[str, Any]:
    "The state of every random number generator that a training draws from"
    name, keys, pos, has_gauss, gauss = cast(tuple, np.random.get_state())  # noqa: NPY002  fastai draws from it
    return dict(python=random.getstate(), torch=torch.get_rng_state(), cuda=torch.cuda.get_rng_state_all(),
                numpy=(name, torch.from_numpy(keys.astype(np.int64)), pos, has_gauss, gauss))


def set_rng_state(state: dict[str, Any]) -> None:
    "Put the generators back to what `rng_state` returned"
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state['python'])
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda']: torch.cuda.set_rng_state_all([s.cpu() for s in state['cuda']])


def callbacks_with_state(
    learn: Any, # A fastai `Learner`
) -> dict[str, Any]:
    "The callbacks that have a state to keep, by `state_dict` and `load_state_dict`, by name"
    # of their class: an attribute that a callback lacks is looked up in the learner, and then in the model
    return {cb.name: cb for cb in learn.cbs if hasattr(type(cb), 'load_state_dict')}


class ResumeFit(Callback):
    """Save the whole state of the training after each epoch; when the file is there at the start of a fit, go on from it.

    The resumed training ends with the same weights as an unbroken one: bit for bit on a CPU, and on a GPU where its algorithms
    are deterministic (`set_seed(…, reproducible=True)`). Other callbacks take part by `state_dict` and `load_state_dict`. The
    file is replaced in one step, so a kill at any moment leaves a whole one. Raises `OSError` where it can not be written.
    """
    order = 90  # after everything that an epoch does, the scheduler and the recorder included

    def __init__(self,
        file: str | os.PathLike, # Where the state lives
        every: int = 1, # Epochs between two saves
    ):
        self.file, self.every = Path(file), every

    def _loader_rng(self) -> Any:
        "The state of the generator by which fastai's loaders shuffle"
        rng = getattr(self.dls.train, 'rng', None)
        return None if rng is None else rng.getstate()

    def _loss_scaler(self) -> Any:
        "That of fastai's mixed precision, None without it"
        mixed = getattr(self.learn, 'mixed_precision', None)
        return None if mixed is None else mixed.scaler

    def before_fit(self):
        self.start = 0
        if not self.file.exists(): return
        device = next(self.model.parameters()).device
        with torch.serialization.safe_globals(_OPTIMIZER_TYPES):
            state = torch.load(self.file, map_location=device, weights_only=True)
        self.model.load_state_dict(state['model'])
        self.opt.load_state_dict(state['opt'])
        for name, cb in callbacks_with_state(self.learn).items():
            if name not in state['callbacks']:
                raise ValueError(f'ResumeFit: {self.file} was saved without {type(cb).__name__}: take the callback out, or go on '
                                 'from another file')
            cb.load_state_dict(state['callbacks'][name])
        if state['loader_epoch'] is not None: self.dls.train.epoch = state['loader_epoch']
        if state.get('loader_rng') is not None: self.dls.train.rng.setstate(state['loader_rng'])
        if state.get('scaler') and (scaler := self._loss_scaler()): scaler.load_state_dict(state['scaler'])
        set_rng_state(state['rng'])
        self.start = state['epoch'] + 1
        self.learn.train_iter = self.start * len(self.dls.train)

    def before_epoch(self):
        if self.epoch < self.start: raise CancelEpochException

    def after_epoch(self):
        if self.epoch < self.start or (self.epoch + 1) % self.every: return
        scaler = self._loss_scaler()
        state = dict(epoch=self.epoch, model=self.model.state_dict(), opt=self.opt.state_dict(), rng=rng_state(),
                     scaler=None if scaler is None else scaler.state_dict(),
                     loader_epoch=getattr(self.dls.train, 'epoch', None), loader_rng=self._loader_rng(),
                     callbacks={k: cb.state_dict() for k, cb in callbacks_with_state(self.learn).items()})
        with atomic_write(self.file) as part: torch.save(state, part)
