"Train a cell of a table by its recipe, from where its last run was cut off"
from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler
from fastai.learner import Learner
from fastai.optimizer import Adam, OptimWrapper
from fastai.torch_core import set_seed

from ..callback.accumulate import EpisodeAccumulation
from ..callback.lft import FTCallback, LFTCallback
from ..callback.lrp import LRPGuidedCallback
from ..callback.resume import ResumeFit
from ..data.loaders import EpisodeDataLoaders
from ..files import load_weights, save_weights
from ..learner import FSCLearner, fsc_learner
from ..metrics import EpisodeAccuracy
from ..models import create_encoder
from ..pretrain import classification_learner
from .cells import Cell, Recipe
from .data import Data

__all__ = ['KeepBest', 'train_cell']

# what the pre-training of an encoder takes from a recipe
PRETRAINING = ('arch', 'size', 'pretrain_epochs', 'pretrain_bs', 'optimizer', 'schedule', 'lr', 'lr_steps')


class KeepBest(Callback):
    "End the fit with the weights of the epoch that did best in validation: the paper's choice of a model, on the seen domain"
    order = 65 # after the recorder has the accuracy
    _stateattrs = ('weights',)

    def __init__(self, metric: EpisodeAccuracy): # One of the learner's metrics
        self.metric, self.best, self.weights = metric, -1., dict[str, torch.Tensor]()

    def before_fit(self): self.best, self.weights = -1., {}

    def after_validate(self):
        if self.metric.value <= self.best: return
        self.best = self.metric.value
        self.weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def after_fit(self):
        if self.weights: self.model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]: return dict(best=self.best, weights=self.weights)
    def load_state_dict(self, state: dict[str, Any]) -> None: self.best, self.weights = state['best'], state['weights']


def train_cell(
    cell: Cell, # What to train
    recipe: Recipe, # How
    data: Data, # On which domains
    folder: Path, # Of the table: trained models and encoders are kept there
) -> FSCLearner:
    """The trained learner of a cell; weights that are there are read, a training that was cut off goes on after its last epoch.

    Raises `ValueError` for weights that are broken, or that another recipe or other data left.
    """
    dls = data.loaders(cell, recipe)
    weights = folder/'cells'/cell.key/'model.safetensors'
    made = dict(cell=asdict(cell), recipe=asdict(recipe), data=data.made(data.others(cell) if cell.ft == 'lft' else ()))
    encoder = _pretrained(dls, recipe, cell.seed, data, folder) if recipe.pretrain_epochs else False
    set_seed(cell.seed, reproducible=True)
    metric = EpisodeAccuracy()
    learn = fsc_learner(dls, recipe.arch, cell.method, pretrained=encoder, metrics=[metric], method_kwargs=recipe.method_kwargs,
                        opt_func=_optimizer(recipe), cbs=_callbacks(cell, data, dls))
    # on CPUs as on GPUs convolutions are faster so
    learn.model.to(memory_format=torch.channels_last)
    if weights.exists(): learn.model.load_state_dict(load_weights(weights, made))
    else:
        if recipe.n_acc > 1: learn.add_cb(EpisodeAccumulation(recipe.n_acc))
        if recipe.val_episodes: learn.add_cb(KeepBest(metric))
        lr = recipe.lr if recipe.encoder_lr == 1 else slice(recipe.encoder_lr * recipe.lr, recipe.lr)
        _fit(learn, recipe.epochs, recipe, lr, weights.with_name('training.pt'))
        save_weights(learn.model, weights, made)
    weights.with_name('training.pt').unlink(missing_ok=True)  # a run may have been killed just before this
    return learn


def _pretrained(dls: EpisodeDataLoaders, recipe: Recipe, seed: int, data: Data, folder: Path) -> dict[str, torch.Tensor]:
    "Weights of the encoder after its pre-training, which the cells of a seed share where their recipes agree on it"
    made = dict(seed=seed, recipe={k: getattr(recipe, k) for k in PRETRAINING}, data=data.made(()))
    name = sha256(json.dumps(made).encode()).hexdigest()[:8]
    weights = folder/'encoders'/f'{recipe.arch}_{recipe.size}px_seed{seed}_{name}.safetensors'
    if not weights.exists():
        weights.parent.mkdir(parents=True, exist_ok=True)
        set_seed(seed, reproducible=True)
        encoder = create_encoder(recipe.arch, img_size=recipe.size).to(memory_format=torch.channels_last)
        learn = classification_learner(dls, encoder, bs=recipe.pretrain_bs, opt_func=_optimizer(recipe))
        lr = 3e-3 if recipe.schedule == 'one_cycle' else recipe.lr
        _fit(learn, recipe.pretrain_epochs, recipe, lr, weights.with_suffix('.pt'))
        save_weights(encoder, weights, made)
    weights.with_suffix('.pt').unlink(missing_ok=True)
    return load_weights(weights, made)


def _fit(learn: Learner, epochs: int, recipe: Recipe, lr: float | slice, state: Path) -> None:
    "Train in silence, with the state in the file `state` after each epoch"
    resume = ResumeFit(state)
    with learn.no_bar(), learn.no_logging():
        if recipe.schedule == 'one_cycle': learn.fit_one_cycle(epochs, lr, cbs=resume)
        else: learn.fit(epochs, lr, cbs=[resume, _stepwise(lr, recipe.lr_steps, epochs)])


def _stepwise(lr: Any, steps: tuple[tuple[int, float], ...], epochs: int) -> ParamScheduler:
    "`lr`, and from each step's epoch on the step's learning rate"
    def lr_at(pct_train: float) -> float:
        return ([lr] + [new for start, new in steps if pct_train * epochs >= start - 1e-6])[-1]
    return ParamScheduler({'lr': lr_at})


def _optimizer(recipe: Recipe) -> Any:
    if recipe.optimizer == 'sgd':
        return partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9, nesterov=True, weight_decay=5e-4))
    return partial(Adam, wd=0.) if recipe.schedule == 'flat' else Adam


def _callbacks(cell: Cell, data: Data, dls: EpisodeDataLoaders) -> list[Callback]:
    "What makes the cell's training: explanations, feature-wise transformation, or both"
    cbs: list[Callback] = [LRPGuidedCallback()] if cell.lrp else []
    if cell.ft == 'ft': cbs.append(FTCallback())
    if cell.ft == 'lft': cbs.append(LFTCallback(data.pseudo_unseen(dls, cell)))
    return cbs
