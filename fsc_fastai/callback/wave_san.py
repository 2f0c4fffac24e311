"wave-SAN: training with the low-frequency styles of another episode (Fu et al. 2022)"
from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from fastai.torch_core import to_device
from torch import Tensor

from ..tensors import plain
from .model import ModelCallback, scores_of, single_output
from .order import ADDED
from .parts.blocks import apart, changed, style_blocks
from .parts.pseudo_unseen import PseudoUnseen
from .parts.styles import half_way_kl, restyle_low

__all__ = ['WaveSANCallback', 'swapped']


def swapped(
    maps: Tensor, # Feature maps of two episodes, one after the other `(2n, C, H, W)`
    crop: bool = False, # Crop maps of odd sides, which are padded, to their original size
) -> Tensor:
    "Exchange the styles of the low bands of each image of one episode and its counterpart in the other"
    a, b = maps.chunk(2)
    both = torch.cat([restyle_low(a, b), restyle_low(b, a)])
    return both[..., :maps.shape[2], :maps.shape[3]] if crop else both


class WaveSANCallback(ModelCallback):
    """Train on two episodes, as they are and with low-band styles swapped after three blocks of the backbone (Fu et al. 2022).

    The loss of a step is (1 − `weight`)·(L_A + L_B)/2 + `weight`·(L_A' + L_B')/2 + (kl_A + kl_B)/2, where A is the episode of
    the loader and B one of a partner, ' marks the pass with swapped styles, and kl is `half_way_kl` of the scores of both passes.
    All passes are in training mode. With `LRPGuidedCallback`, L_A is the guided loss.

    `losses` has those of the last step; `state_dict` holds the position in the partner's episodes. Raises `ValueError` for a
    compiled model, for a backbone whose blocks have no style (a ViT), and for a partner whose episodes have another shape.
    """
    order = ADDED
    _stateattrs = ('partner', 'partners', 'losses', '_saved')
    partner: Any = None # Loaders are not exported
    partners: PseudoUnseen | None = None # made at the start of a fit
    losses: Mapping[str, Tensor] = {}
    _saved: Mapping[str, Any] = {}

    def __init__(self,
        partner: Any = None, # `DataLoaders` or loaders of the episodes B; None: other episodes of the training domain
        weight: float = .8, # Weight of the losses with swapped styles
        p_swap: float = 1., # Probability that a block swaps styles; published: 1
        crop: bool = False, # Crop odd maps to size after a swap; published: they stay padded, so later maps are larger
        blocks: Sequence[str] | None = None, # Names of the blocks within the model; None: all stages but stem and last
    ):
        self.partner, self.own, self.weight, self.p_swap = partner, partner is None, weight, p_swap
        self.crop, self.blocks = crop, blocks

    def before_fit(self):
        self.refuse_compiled('overlooks hooks')
        self.names = style_blocks(self.raw_model, self.blocks)
        saved, self.partners = self.state_dict(), PseudoUnseen(self._partner())
        self.load_state_dict(saved)

    def _partner(self) -> Any:
        train = self.dls.train
        if self.partner is not None: return self.partner
        if not self.own: raise ValueError('WaveSANCallback: an exported learner has no partner, give it a new callback')
        if hasattr(train, 'n_episodes'): return train.new(seed=train.seed + 1, epoch=0)
        raise ValueError(f'WaveSANCallback: a {type(train).__name__} draws no other episodes of its domain: pass partner=')

    def before_train(self): self.partners.start_epoch()
    def after_train(self):
        if not self.idle: self.partners.end_epoch()

    def after_loss(self):
        if self.idle: return
        *other, other_y = to_device(next(self.partners.episodes(self.iter)), self.loss_grad.device, non_blocking=True)
        shapes = [[tuple(x.shape) for x in (xb[0], xb[2])] for xb in (self.xb, other)]
        if shapes[0] != shapes[1]:
            raise ValueError(f'WaveSANCallback: support and queries have the shapes {shapes[0]}, the partner\'s {shapes[1]}, '
                             'but styles are swapped image by image: both need the same way, shot, queries and size')
        outputs = [self.pred, self.raw_model(*other), *self._swapped_passes(self.xb, other)]
        loss = lambda output, y: self.learn.loss_func(single_output(output), y)
        plain_b, swap_a, swap_b = (loss(o, y) for o, y in zip(outputs[1:], (other_y, *self.yb, other_y), strict=True))
        a, b, a_swapped, b_swapped = map(scores_of, outputs)
        kls = half_way_kl(a, a_swapped) + half_way_kl(b, b_swapped)
        parts = dict(plain=self.loss_grad + plain_b, swapped=swap_a + swap_b, kl=kls)
        self.losses = {k: v.detach() / 2 for k, v in parts.items()}
        self.learn.loss_grad = ((1 - self.weight) * (self.loss_grad + plain_b) + self.weight * (swap_a + swap_b) + kls) / 2
        self.learn.loss = self.learn.loss_grad.clone()

    def _swapped_passes(self, *episodes: Sequence[Tensor]) -> list[Any]:
        "The model's output for each episode, with styles swapped"
        model = self.raw_model
        images = torch.cat([plain(x) for xb in episodes for x in (xb[0], xb[2])])
        swap = partial(swapped, crop=self.crop)
        swaps = {name: swap for name in self.names if random.random() < self.p_swap}
        with apart(model.encoder), changed(model, swaps): maps = model.encode(images).chunk(2)
        return [model.forward_head(f[:xb[0].shape[0]], xb[1], f[xb[0].shape[0]:]) for f, xb in zip(maps, episodes, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        "The position in the partner's episodes"
        return dict(self._saved) if self.partners is None else self.partners.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        "Restore a state"
        if self.partners is None: self._saved = state
        elif state: self.partners.load_state_dict(state)
