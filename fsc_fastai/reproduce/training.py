"Train a cell of a table by its recipe; an interrupted training continues"
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.schedule import ParamScheduler
from fastai.learner import AvgMetric, Learner, Metric
from fastai.metrics import accuracy
from fastai.optimizer import Adam, OptimWrapper
from fastai.torch_core import set_seed
from torch import nn

from ..callback.accumulate import EpisodeAccumulation
from ..callback.afa import AFACallback
from ..callback.ata import ATACallback
from ..callback.bsr import BSRCallback
from ..callback.guided import LRPGuidedCallback
from ..callback.guided.lrp_controls import ChangedWeights, shuffled, shuffled_channels, unweighted
from ..callback.lft import FTCallback, LFTCallback
from ..callback.order import BEST
from ..callback.resume import ResumeFit
from ..callback.styleadv import StyleAdvCallback
from ..callback.wave_san import WaveSANCallback
from ..data.loaders import EpisodeDataLoaders
from ..encode import create_encoder
from ..explain.baselines import GradientXInput
from ..files import atomic_write, load_weights, save_weights
from ..learner.core import FSCLearner, fsc_learner
from ..learner.metrics import EpisodeAccuracy
from ..learner.pretrain import classification_learner
from .cells import Cell, Recipe
from .table_data import Data

__all__ = ['KeepBest', 'LevelsOff', 'encoder_file', 'pretrain_cell', 'train_cell', 'training_curves', 'optimizer_of',
           'callbacks_of', 'stepwise']

# what the pre-training of an encoder takes from a recipe
PRETRAINING = ('arch', 'size', 'pretrain_epochs', 'pretrain_bs', 'optimizer', 'schedule', 'pretrain_lr', 'pretrain_patience')


class KeepBest(Callback):
    "End the fit with the weights of the epoch with the best validation accuracy on the seen domain, as in the paper"
    order = BEST
    _stateattrs = ('weights',)

    def __init__(self, metric: Metric): # Which of the learner's metrics to watch: the accuracy
        self.metric = metric
        self.before_fit()

    def before_fit(self):
        self.accuracies: list[float] = []  # of every epoch, which show whether training has levelled off
        self.weights: dict[str, torch.Tensor] = {}

    def after_validate(self):
        self.accuracies.append(float(self.metric.value))
        if self.accuracies[-1] > max(self.accuracies[:-1], default=-1.):
            self.weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def after_fit(self):
        if self.weights: self.model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]: return dict(accuracies=self.accuracies, weights=self.weights)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.accuracies, self.weights = state['accuracies'], state['weights']


class LevelsOff(KeepBest):
    """Train until the accuracy has levelled off.

    If it has not risen for `patience` epochs, learning rates fall to a tenth. If it then has not risen for as many again, the
    training ends with the weights of the best epoch.
    """
    def __init__(self,
        metric: Metric, # The metric of the learner to watch, an accuracy
        patience: int = 3, # Epochs without a better value, after which training ends
    ):
        super().__init__(metric)
        self.patience = patience

    def before_fit(self):
        super().before_fit()
        self.fell = 0  # epoch at whose end the learning rates fell; 0: they have not

    def after_epoch(self):
        # an epoch that a resumed training skips has not been validated
        if self.epoch + 1 != len(self.accuracies): return
        best = self.accuracies.index(max(self.accuracies)) + 1
        if len(self.accuracies) - max(best, self.fell) < self.patience: return
        if self.fell: raise CancelFitException
        self.fell = len(self.accuracies)
        self.opt.set_hyper('lr', [hypers['lr'] / 10 for hypers in self.opt.hypers])

    def state_dict(self) -> dict[str, Any]: return super().state_dict() | dict(fell=self.fell)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.fell = state['fell']


GUIDES: dict[str, Callable[[], dict[str, Any]]] = {
    '': dict,
    'shuffled': lambda: dict(second_pass=ChangedWeights(shuffled_channels)),
    'random': lambda: dict(second_pass=ChangedWeights(shuffled)),
    'ones': lambda: dict(second_pass=unweighted),
    'gradient': lambda: dict(explainer=GradientXInput()),
}
"What `LRPGuidedCallback` is given for each control of a cell"
LATER_CALLBACKS: dict[str, Callable[[], Callback]] = {
    'StyleAdv': StyleAdvCallback, 'ATA': ATACallback, 'BSR': BSRCallback, 'waveSAN': WaveSANCallback,
    # the published 400 epochs, in proportion to those of the recipe
    'AFA': partial(AFACallback, of_epochs=None)}
"What trains a cell by a way of `LATER`, as published; FLoR is no callback but norms of the encoder"


def train_cell(
    cell: Cell, # What to train
    recipe: Recipe, # How to train it
    data: Data, # The domains to train and test on
    folder: Path, # Folder of the table, with trained models and encoders
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
    # its norms come after the pre-training, which all cells of a seed share
    flor = cell.later == 'FLoR'
    arch = create_encoder(recipe.arch, encoder, recipe.size, flor=(.01, .01)) if flor else recipe.arch
    learn = fsc_learner(dls, arch, cell.method, pretrained=bool(encoder) if flor else encoder, opt_func=optimizer_of(recipe),
                        metrics=[metric], method_kwargs=recipe.method_kwargs, cbs=callbacks_of(cell, data, dls))
    # on CPUs as on GPUs convolutions are faster so
    learn.model.to(memory_format=torch.channels_last)
    if weights.exists(): learn.model.load_state_dict(load_weights(weights, made))
    else:
        if recipe.n_acc > 1: learn.add_cb(EpisodeAccumulation(recipe.n_acc))
        best = KeepBest(metric) if recipe.val_episodes else None
        lr = recipe.lr if recipe.encoder_lr == 1 else slice(recipe.encoder_lr * recipe.lr, recipe.lr)
        _fit(learn, recipe.epochs, recipe, lr, weights.with_name('training.pt'), made, best)
        _save(learn.model, weights, made, best)
    weights.with_name('training.pt').unlink(missing_ok=True)  # a run may have been killed just before this
    return learn


def pretrain_cell(
    cell: Cell, # The cell, for its seed
    recipe: Recipe, # How to train it
    data: Data, # The domains to train and test on
    folder: Path, # Folder of the table
) -> None:
    "Pre-train the encoder that a cell begins with, unless it is there or the recipe has none"
    if recipe.pretrain_epochs: _pretrained(data.loaders(cell, recipe), recipe, cell.seed, data, folder)


def encoder_file(
    recipe: Recipe, # How to train it
    seed: int, # Seed of a cell
    data: Data, # The domains to train and test on
    folder: Path, # Folder of the table
) -> tuple[Path, dict[str, Any]]:
    "Weights of a pre-trained encoder, and what they are of: cells of a seed share them where their recipes agree on it"
    made = dict(seed=seed, recipe={k: getattr(recipe, k) for k in PRETRAINING}, data=data.made(()))
    name = sha256(json.dumps(made).encode()).hexdigest()[:8]
    return folder/'encoders'/f'{recipe.arch}_{recipe.size}px_seed{seed}_{name}.safetensors', made


def _pretrained(dls: EpisodeDataLoaders, recipe: Recipe, seed: int, data: Data, folder: Path) -> dict[str, torch.Tensor]:
    "Weights of the encoder after its pre-training"
    weights, made = encoder_file(recipe, seed, data, folder)
    if not weights.exists():
        weights.parent.mkdir(parents=True, exist_ok=True)
        set_seed(seed, reproducible=True)
        encoder = create_encoder(recipe.arch, img_size=recipe.size).to(memory_format=torch.channels_last)
        metric = AvgMetric(accuracy)
        learn = classification_learner(dls, encoder, bs=recipe.pretrain_bs, opt_func=optimizer_of(recipe), metrics=[metric])
        best = LevelsOff(metric, recipe.pretrain_patience) if recipe.pretrain_patience else None
        flat = replace(recipe, lr_steps=())
        _fit(learn, recipe.pretrain_epochs, flat, recipe.pretrain_lr, weights.with_suffix('.pt'), made, best)
        _save(encoder, weights, made, best)
    weights.with_suffix('.pt').unlink(missing_ok=True)
    return load_weights(weights, made)


def _save(module: nn.Module, weights: Path, made: dict[str, Any], best: KeepBest | None) -> None:
    "The accuracy of every epoch where it was kept, then the weights: what has weights is trained"
    if best:
        with atomic_write(weights.with_suffix('.json')) as part: part.write_text(json.dumps(best.accuracies))
    save_weights(module, weights, made)


def training_curves(
    cell: Cell, # A trained cell
    recipe: Recipe, # How to train it
    data: Data, # The domains to train and test on
    folder: Path, # Folder of the table
) -> dict[str, list[float]]:
    "The accuracy of every epoch, by which the best was chosen: in pre-training, and on validation episodes"
    weights = dict(pretraining=encoder_file(recipe, cell.seed, data, folder)[0],
                   validation=folder/'cells'/cell.key/'model.safetensors')
    curves = {name: file.with_suffix('.json') for name, file in weights.items()}
    return {name: json.loads(file.read_text()) for name, file in curves.items() if file.exists()}


def _fit(
    learn: Learner, epochs: int, recipe: Recipe, lr: float | slice, state: Path, made: dict[str, Any], best: KeepBest | None,
) -> None:
    "Train in silence, with the state in the file `state` after each epoch"
    cbs = [ResumeFit(state, of=made), *([best] if best else [])]
    with learn.no_bar(), learn.no_logging():
        if recipe.schedule == 'one_cycle': learn.fit_one_cycle(epochs, lr, cbs=cbs)
        # a scheduler would undo what `LevelsOff` does to the learning rate
        else: learn.fit(epochs, lr, cbs=cbs + ([stepwise(lr, recipe.lr_steps, epochs)] if recipe.lr_steps else []))


def stepwise(
    lr: Any, # At the start: a number, or a slice for the encoder and the head
    steps: tuple[tuple[int, float], ...], # (epoch, learning rate from then on)
    epochs: int, # Epochs of the training
) -> ParamScheduler:
    "`lr`, and from each step's epoch on the step's learning rate"
    def scaled(new: float) -> Any: return slice(new * lr.start / lr.stop, new) if isinstance(lr, slice) else new
    def lr_at(pct_train: float) -> Any:
        return ([lr] + [scaled(new) for start, new in steps if pct_train * epochs >= start - 1e-6])[-1]
    return ParamScheduler({'lr': lr_at})


def optimizer_of(
    recipe: Recipe, # Recipe of a cell
) -> Any:
    "The optimizer of the publication that a recipe follows"
    if recipe.optimizer == 'sgd':
        return partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9, nesterov=True, weight_decay=5e-4))
    return partial(Adam, wd=0.) if recipe.schedule == 'flat' else Adam


def callbacks_of(
    cell: Cell, # A cell of a table
    data: Data, # Its domains, of which LFT needs the pseudo-unseen ones
    dls: EpisodeDataLoaders, # Loaders of the seen domain
) -> list[Callback]:
    "What makes the cell's training: explanations, feature-wise transformation, or both"
    cbs: list[Callback] = [LRPGuidedCallback(lam=cell.lam, **GUIDES[cell.control]())] if cell.lrp else []
    if cell.ft == 'ft': cbs.append(FTCallback())
    if cell.ft == 'lft': cbs.append(LFTCallback(data.pseudo_unseen(dls, cell)))
    if cell.later in LATER_CALLBACKS: cbs.append(LATER_CALLBACKS[cell.later]())
    return cbs
