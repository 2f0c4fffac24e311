"The guided pass of a cross attention network in the released code of the paper"
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...explain.weights import relevance_start, relevance_weights
from ...methods.cross_attention import Attended, CrossAttentionNet
from ...tensors import full_precision, single, unit

__all__ = ['PublishedCANPass']


class PublishedCANPass:
    """The released code of LRP-CAN: weights for each channel and for each position, with gradients through the weights.

        LRPGuidedCallback(second_pass=PublishedCANPass())

    Scores at every position become scale·Σ_c (1 + R_c)(1 + R_c,position) p_c q_c,position of the unit features p and q, where R_c
    is the relevance of a term of the cosine, and R_c,position its share by the ε-rule over the spatial mean, both divided by the
    maximum of |R| over the channels. The paper (Sun et al. 2020, equations (7) and (8)) weights the features, by constants.
    With ξ = 0, λ = 1, the defaults of this method, the loss is global cross entropy + half that of these scores.
    """
    def __init__(self, eps: float = 1e-3): # ε of equations (2) and (4); the released code has 0.01
        self.eps = eps

    def relevance(self,
        model: CrossAttentionNet, # The model
        f_p: Attended, # Processed features, `(n_query, n_way, C, H, W)`
    ) -> tuple[Tensor, Tensor]:
        "Relevance of each term of the cosine `(n_query, n_way, C)`, and of the attended queries `(n_query, n_way, C, H, W)`"
        query, total = single(f_p.query), single(f_p.query).sum((-2, -1))
        terms = unit(total) * unit(single(f_p.support).mean((-2, -1)))
        cosine = terms.sum(-1)
        # a factor of a whole class, as the relevance of its score is, leaves no trace in weights that are divided by the largest
        of_terms = terms * self._divide(relevance_start(model.scale * cosine, self.eps), cosine)[..., None]
        return of_terms, query * self._divide(of_terms, total)[..., None, None]

    def _divide(self, R: Tensor, z: Tensor) -> Tensor:
        "R / (z + ε·sign(z)), 0 where z is 0, with finite gradients there as well"
        return torch.where(z != 0, R / (z + self.eps * z.sign()).masked_fill(z == 0, 1), 0)

    def __call__(self,
        model: Any, # A `CrossAttentionNet`
        f_p: Any, # Its processed features
    ) -> Tensor:
        """Scores at every position `(n_query, n_way, H, W)`.

        Raises `TypeError` for another method, and `ValueError` with another loss than `CrossAttentionLoss`.
        """
        if not isinstance(model, CrossAttentionNet):
            raise TypeError(f'PublishedCANPass guides a CrossAttentionNet, found {type(model).__name__}: leave second_pass out')
        if model.scores_only:
            raise ValueError('PublishedCANPass scores every position, as CrossAttentionLoss takes it, not another loss: leave '
                             'out loss_func or second_pass')
        with full_precision(f_p.query):
            of_terms, of_query = self.relevance(model, f_p)
            w = relevance_weights(of_terms, detach=False)[..., None, None] * relevance_weights(of_query, detach=False)
            prototype = unit(single(f_p.support).mean((-2, -1)))
            return model.scale * torch.einsum('qwc,qwchv->qwhv', prototype, w * unit(f_p.query, 2))
