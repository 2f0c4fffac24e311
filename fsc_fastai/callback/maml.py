"""First-order MAML around a few-shot method (Cai and Shen 2020, meta fine-tuning): weights that are good to fine-tune.

Before each step the last block of the encoder is fine-tuned to the support of the episode. The gradient of the episode's loss at
the fine-tuned weights then updates the original weights; it does not pass through the fine-tuning (first order).
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ..methods.base import episode_way
from ..tensors import plain, pool_vectors
from .lft import LFTCallback
from .model import ModelCallback
from .order import OTHER_WEIGHTS

__all__ = ['FirstOrderMAML', 'fine_tuned']


def fine_tuned(
    encoder: Any, # Images to feature maps; not changed
    names: Sequence[str], # Names of its parameters that are tuned
    x: Tensor, # Support images `(n, channels, height, width)`
    y: Tensor, # Their labels `(n,)`
    epochs: int = 15, # Passes over the support
    bs: int = 4, # Images per step
    lr: float = .01, # Learning rate of Adam
    classifier: bool = False, # Also learn a linear classifier; False: the first pooled features are the scores, as published
) -> dict[str, Tensor]:
    "The parameters after fine-tuning by cross entropy in the current mode of the encoder, whose buffers do not change"
    state = {k: v.detach().clone() for k, v in encoder.state_dict(keep_vars=True).items()}
    fast = {k: state[k].requires_grad_() for k in names}
    n_way = episode_way(y)
    weight = x.new_zeros(n_way, encoder.num_features, requires_grad=True) if classifier else None
    learned = [*fast.values()] + ([weight] if weight is not None else [])
    opt = torch.optim.Adam(learned, lr)
    y = plain(y)
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).to(x.device, non_blocking=True).split(bs):
            features = pool_vectors(functional_call(encoder, state, (x[rows],)))
            loss = F.cross_entropy(features if weight is None else features @ weight.T, y[rows])
            for p, g in zip(learned, torch.autograd.grad(loss, learned), strict=True): p.grad = g
            opt.step()
    return {k: p.detach() for k, p in fast.items()}


class FirstOrderMAML(ModelCallback):
    """Train with the loss of each episode at weights that were fine-tuned to its support (Cai and Shen 2020, with GNNNet).

    The defaults are those of the published code, whose inner loss has no linear classifier. Unlike there, the small batches of
    the fine-tuning do not update running statistics. A step takes several times as long as a plain one. Does nothing under
    `lr_find`. Raises `ValueError` for a compiled model, beside `LFTCallback`, and for a backbone without a known last block.
    """
    order = OTHER_WEIGHTS

    def __init__(self,
        layers: Sequence[str] | None = None, # Modules of the encoder's body that are tuned; None: its last stage
        epochs: int = 15, # Passes over the support
        bs: int = 4, # Images per step
        lr: float = .01, # Learning rate of the fine-tuning, by Adam
        classifier: bool = False, # Fine-tune with a linear classifier; False: the first pooled features are the scores
    ):
        self.layers, self.epochs, self.bs, self.lr, self.classifier = layers, epochs, bs, lr, classifier

    def before_fit(self):
        self.leave()  # an error may have ended the last fit in the middle of a step
        self.run = not self.idle
        if not self.run: return
        self.refuse_compiled('may keep the weights that it was compiled with')
        if any(isinstance(cb, LFTCallback) for cb in self.learn.cbs):
            raise ValueError('FirstOrderMAML: LFTCallback makes a step of its own from the weights, which here are those of one '
                             'episode: use FTCallback beside it')
        self.names = self._names()

    def _names(self) -> list[str]:
        "Parameters of the encoder that are tuned"
        encoder: Any = self.raw_model.encoder
        stages = getattr(encoder.body, 'feature_info', None)
        layers = self.layers or ([stages[-1]['module']] if stages else [])
        names = [k for k, _ in encoder.named_parameters() if any(k.startswith(f'body.{layer}.') for layer in layers)]
        if not names:
            parts = ", ".join(name for name, _ in encoder.body.named_children())
            where = ', '.join(layers) or 'a last stage'
            raise ValueError(f'FirstOrderMAML: {type(encoder.body).__name__} has no weights in {where}: name the parts to tune '
                             f'(layers=[…]) among {parts}')
        return names

    def before_batch(self):
        step, encoder, (x, y) = self.enter(), self.raw_model.encoder, self.xb[:2]
        fast = fine_tuned(encoder, self.names, plain(x), y, self.epochs, self.bs, self.lr, self.classifier)
        for k, w in fast.items():
            p = encoder.get_parameter(k)
            step.callback(setattr, p, 'data', p.data)
            p.data = w

    def after_backward(self):
        "The weights as they were, with the gradient at those of the episode"
        self.leave()
