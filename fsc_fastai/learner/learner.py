"`FSCLearner`: a fastai `Learner` whose batches are episodes"
from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from fastai.callback import fp16, hook, progress, schedule, tracker  # noqa: F401  these add their methods to Learner
from fastai.callback.core import Callback
from fastai.data.transforms import ToTensor
from fastai.learner import Learner, load_model, save_model
from fastai.torch_core import distrib_barrier, num_distrib, rank_distrib
from fastcore.foundation import L
from fastcore.xtras import join_path_file
from torch import nn

from ..callback.of_fastai import adapted, untracked
from ..data.loader import check_any
from ..data.loaders import EpisodeDataLoaders
from ..data.sampler import as_range
from ..files import atomic_write
from ..methods import FewShotModel
from ..methods.finite import check_weights
from .pretrain import pretrain_encoder
from .saved import OptimizerAndCallbacks

__all__ = ['FSCLearner', 'own_weights', 'first_weights']


def own_weights(
    model: nn.Module, # A few-shot model
) -> list[nn.Parameter]:
    "The weights outside the encoder"
    return [p for name, p in model.named_parameters() if not name.startswith('encoder.')]


def first_weights(
    model: nn.Module, # A few-shot model or an encoder
) -> torch.Tensor:
    "A copy of weights that any training changes `(n,)`, at most 256: of the head or, if it has none, of the encoder"
    some = next(iter(own_weights(model)), next(model.parameters(), torch.empty(0)))
    return some.detach().flatten()[:256].cpu().clone()


class FSCLearner(Learner):
    """A fastai `Learner` whose batches are episodes.

    It differs from fastai's in four ways. `fine_tune` first pre-trains an encoder that has no training yet. Predictions keep the
    order of the episodes. Callbacks that would misread episodes are refused. A failed `export` loses nothing.
    """
    _encoder_trained = False
    first_encoder: torch.Tensor | None = None # As `first_weights`, of the encoder alone
    first_weights: torch.Tensor | None = None # Those of `first_weights` when the learner was made; None: already trained
    dls: EpisodeDataLoaders
    loss_func: Callable
    # Methods that other files add, for those who check types
    evaluate: Callable[..., pd.DataFrame]
    confusion: Callable[..., pd.DataFrame]
    accuracy_by_class: Callable[..., pd.Series]
    feature_statistics: Callable[..., pd.DataFrame]
    explain: Callable[..., Any]
    set_support: Callable[..., FSCLearner]
    classifier: Callable[[], Any]
    predict: Callable[..., Any]
    save_bundle: Callable[..., Path]
    distrib_ctx: Callable[..., Any]
    opt: Any

    def add_cb(self, cb: Callback | type[Callback]) -> FSCLearner:
        "Add a callback. Raises `TypeError` for one that would misread episodes, and says what to use instead"
        return super().add_cb(adapted(cb, self))

    def fit(self,
        n_epoch: int, # Epochs of `dls.train.n_episodes` episodes
        *args, **kwargs, # For fastai's `fit`: lr, wd, cbs, …
    ) -> None:
        """Train. The learner stays usable after an error or interruption in the middle of a batch.

        Raises `ValueError` without training images, as in a learner that was exported and loaded.
        """
        check_any(self.dls.train, 'train on')
        if isinstance(self.model, FewShotModel):  # a loss of the user's own takes scores
            self.model.scores_only = not isinstance(self.loss_func, type(self.model.default_loss()))
        trained = self.encoder_trained
        try: super().fit(n_epoch, *args, **kwargs)
        except BaseException:
            self('after_cancel_batch')  # callbacks take off what they put on the model for the step
            self._end_cleanup()  # an error in mid-batch must not keep the batch and its graph alive
            raise
        # whatever callbacks loaded meanwhile, such as `SaveModelCallback` at the end
        self.encoder_trained = trained or self.opt.frozen_idx == 0

    @property
    def encoder_trained(self) -> bool:
        "Has the encoder been trained, or been given weights by whatever function? Then `fine_tune` does not pre-train it"
        if self._encoder_trained or self.first_encoder is None: return self._encoder_trained
        return not torch.equal(first_weights(self.model.encoder), self.first_encoder)

    @encoder_trained.setter
    def encoder_trained(self, trained: bool) -> None: self._encoder_trained = trained

    @property
    def untrained(self) -> bool:
        "Is it as it was made: its head or, for a head without weights, its encoder? False if that is not known"
        return self.first_weights is not None and torch.equal(first_weights(self.model), self.first_weights)

    def warn_untrained(self) -> None:
        "Warn that the answers of an untrained learner are about as good as chance"
        if not self.untrained: return
        head = type(self.model).__name__
        what = f'{head} compares by weights of its own' if own_weights(self.model) else 'its encoder is random'
        warnings.warn(f'nobody has trained this learner: {what}, so that its answers are about as good as chance. Train it '
                      '(learn.fine_tune), or use FewShotClassifier.from_backbone(arch), which needs no training', stacklevel=3)

    def lr_find(self,
        *args, **kwargs, # For fastai's `lr_find`
    ) -> Any:
        "fastai's `lr_find`, which leaves the weights, the next episodes and `encoder_trained` as they were"
        check_any(self.dls.train, 'train on')
        trained, epoch = self.encoder_trained, self.dls.train.epoch
        try: return super().lr_find(*args, **kwargs)
        finally: self.encoder_trained, self.dls.train.epoch = trained, epoch

    def save(self,
        file: str | os.PathLike, # Name within `path/model_dir`, without the ending
        **kwargs, # For fastai's `save_model`, such as `with_opt`
    ) -> Path:
        """Write the weights, the optimizer and the state of callbacks, such as γ and β of `LFTCallback`.

        fastai's own `load` can read the file, without the state of callbacks. Raises `ValueError` for weights that are not
        finite; an older file then stays.
        """
        check_weights(self.model, 'save')
        path = join_path_file(file, self.path/self.model_dir, ext='.pth')
        opt: Any = None if self.opt is None else OptimizerAndCallbacks(self)
        with atomic_write(path) as part: save_model(part, self.model, opt, **kwargs)
        return path

    def load(self,
        file: str | os.PathLike, # Name within `path/model_dir`, without the ending
        device: str | torch.device | None = None, # Device of the weights; None: that of the loaders
        **kwargs, # For fastai's `load_model`, such as `with_opt` and `strict`
    ) -> FSCLearner:
        """Load what `save` wrote: the weights, the optimizer, and the state of callbacks that this learner has too.

        Callbacks that are not in the file do not change. Raises `ValueError` for the state of other transformations.
        """
        if self.opt is None: self.create_opt()
        path, saved = join_path_file(file, self.path/self.model_dir, ext='.pth'), OptimizerAndCallbacks(self)
        distrib_barrier()
        load_model(path, self.model, saved, device=getattr(self.dls, 'device', None) if device is None else device, **kwargs)
        saved.load_callbacks()
        self.encoder_trained = True
        return self

    def pretrain_encoder(self,
        epochs: int = 20, # Passes over the training images
        lr: float = 3e-3, # Peak learning rate
        cbs: Any = None, # Callbacks of the pre-training
        **kwargs, # For `classification_learner`
    ) -> FSCLearner:
        "Train the encoder by plain classification of the training classes; several ranks share each batch"
        check_any(self.dls.train, 'train on')
        if hasattr(self, 'episode_distributed_trainer'):
            cbs = [*L(cbs), self.episode_distributed_trainer.again()]
            kwargs['bs'] = max(1, kwargs.get('bs', 64) // num_distrib())
        pretrain_encoder(self.dls, self.model.encoder, epochs, lr, cbs, show_bar=hasattr(self, 'progress'), **kwargs)
        self.encoder_trained, self.opt = True, None
        return self

    def fine_tune(self,
        epochs: int, # Epochs with the whole model unfrozen
        base_lr: float = 2e-3, # Peak learning rate while the encoder is frozen, twice that of the second phase
        freeze_epochs: int = 1, # Epochs with the encoder frozen
        lr_mult: float = 10, # Factor by which the encoder's learning rate is smaller
        pretrain_epochs: int | None = None, # Epochs of encoder pre-training; None: 20 if the encoder is untrained, else 0
        **kwargs, # For `fit_one_cycle`
    ) -> None:
        """Pre-train an untrained encoder, train the head with the encoder frozen, then train everything.

        From random weights a RelationNet stays at chance for hundreds of episodes; with a pre-trained encoder it learns at once.
        All published results start from a pre-trained encoder, too.
        """
        if pretrain_epochs is None: pretrain_epochs = 0 if self.encoder_trained else 20
        if pretrain_epochs: self.pretrain_encoder(pretrain_epochs)
        if len(self.splitter(self.model)) > 1:
            super().fine_tune(epochs, base_lr, freeze_epochs=freeze_epochs, lr_mult=lr_mult, **kwargs)
        else: self.fit_one_cycle(freeze_epochs + epochs, base_lr/2, **kwargs)  # no head of its own to train first

    def validate(self,
        ds_idx: int = 1, # The loader: 0 training, 1 validation
        dl: Any = None, # Another loader of episodes to use instead
        cbs: Any = None, # Callbacks for this validation
    ) -> Any:
        """Loss and metrics of a loader of episodes, without callbacks that record a training.

        Raises `ValueError` without images, as in a learner that was exported and loaded.
        """
        if dl is None: check_any(self.dls[ds_idx], 'validate on')
        with untracked(self): return super().validate(ds_idx, dl, cbs)

    def get_preds(self,
        ds_idx: int = 1, # The loader: 0 training, 1 validation
        dl: Any = None, # Another loader of episodes to use instead
        *,
        reorder: bool = True, # Has no effect: the order is always that of the episodes
        **kwargs, # For fastai's `get_preds`, such as `with_loss` and `with_decoded`
    ) -> tuple:
        """Scores `(n, n_way)` and labels `(n,)` of every query, in the order of the episodes.

        If the number of classes varies, all rows have the highest `n_way`, with probability 0 for classes that an episode lacks.
        Raises `TypeError` for a loader of single images, and for losses without predictions: fastai's Interpretation classes ask
        for them and would read the labels of an episode as classes of the vocabulary.
        """
        if kwargs.get('with_loss') and not kwargs.get('with_preds', True):
            raise TypeError("fastai's Interpretation classes read the labels of an episode as classes of the vocabulary: "
                            'use learn.evaluate(), or learn.confusion(domain) for the classes')
        if dl is None: check_any(self.dls[ds_idx], 'predict')
        lowest, highest = as_range('n_way', getattr(self.dls[ds_idx] if dl is None else dl, 'n_way', 1))
        if lowest < highest: kwargs['cbs'] = [*L(kwargs.get('cbs')), _OneWidth(highest)]
        with untracked(self): return super().get_preds(ds_idx, dl, reorder=False, **kwargs)

    def tta(self,
        ds_idx: int = 1, # The loader: 0 training, 1 validation
        dl: Any = None, # Another loader of episodes to use instead
        n: int = 4, # Passes over the same episodes, each with new augmentations
        item_tfms: Any = None, # Item transforms to use instead of the loader's, before `ToTensor`
        batch_tfms: Any = None, # Batch transforms to use instead of the loader's, including normalisation
        **kwargs, # For fastai's `tta`: beta, use_max
    ) -> tuple:
        "Scores and labels as from `get_preds`, averaged over augmented support and queries and, weighted by `beta`, plain ones"
        new: dict[str, Any] = {} if item_tfms is None else dict(after_item=[*L(item_tfms), ToTensor()])
        if batch_tfms is not None: new['after_batch'] = batch_tfms
        dl = (self.dls[ds_idx] if dl is None else dl).new(shuffle=False, **new)
        with untracked(self): return super().tta(dl=dl, n=n, **kwargs)

    def gather_args(self) -> dict[str, Any]:
        "The settings that `WandbCallback` records of a run, as text"
        train = self.dls.train
        settings = dict(method=type(self.model).__name__, encoder=type(self.model.encoder).__name__, loss=self.loss_func,
                        optimizer=self.opt_func, lr=self.lr, n_way=train.n_way, n_shot=train.n_shot, n_query=train.n_query,
                        n_episodes=train.n_episodes, seed=train.seed, size=self.dls.img_size, device=self.dls.device,
                        transforms=train.after_batch, callbacks=self.cbs)
        return {name: _Text(value) for name, value in settings.items()}

    def _split(self, b: Any) -> None:
        if len(b) < 3:
            raise TypeError('these are images without examples, an episode has support images, their labels and queries. Set '
                            'examples by learn.set_support(images, labels), then ask learn.predict(image), or '
                            'learn.classifier().predict_proba(images) for many')
        super()._split(b)

    def export(self,
        fname: str | os.PathLike = 'export.pkl', # File within `learn.path`, or an absolute path
        *,
        bundle: str | os.PathLike | None = None, # Folder for a bundle of plain data, likewise; see `save_bundle`
        **kwargs, # For fastai's `export`, such as `pickle_protocol`
    ) -> None:
        """Write the learner without its data for `load_learner`. If that fails, an older file and the learner do not change.

        Loading the file, a pickle, executes what it holds; loading a bundle executes nothing. Raises `ValueError` for weights
        that are not finite.
        """
        check_weights(self.model, 'export')
        if rank_distrib(): return  # the first one writes
        if bundle is not None: self.save_bundle(Path(self.path)/bundle)
        dls, opt, loss_func = self.dls, self.opt, self.loss_func
        try:
            # absolute, because fastai looks for the file within `learn.path`
            with atomic_write(Path(self.path)/fname) as part: super().export(part.absolute(), **kwargs)
        finally: self.dls, self.opt, self.loss_func = dls, opt, loss_func


class _Text(str):
    "A string that `vars` reads, as fastai's `WandbCallback` does with all that it is given"


class _OneWidth(Callback):
    "Scores of episodes with fewer classes as wide as all others: −∞ for the classes that they lack"
    def __init__(self, width: int): self.width = width
    def after_loss(self): self.learn.pred = F.pad(self.pred, (0, self.width - self.pred.shape[1]), value=-math.inf)
