"The relevance of the scores, where explanations start, and the weights of features that training uses"
from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..tensors import plain, single

__all__ = ['relevance_start', 'contrast', 'log_odds', 'relevance_weights', 'Over']

Over = Literal['channels', 'map']


def relevance_start(
    scores: Tensor, # Scores `(..., n_way)`
    eps: float = 1e-3, # Keeps the logarithm finite
) -> Tensor:
    """The relevance of every class, R_c = log((K−1)(P_c + ε) / (1 − P_c + ε)) with P the softmax of the scores.

    Positive where a class is likelier than chance (Sun et al. 2020, equations (1) and (2)). Same shape as `scores`, detached.
    An infinite score counts as the largest number; a nan stays nan. Raises `ValueError` for a single class.

    >>> relevance_start(torch.tensor([[0.7, 0.2, 0.1]]).log(), eps=0.)   # log(2·0.7/0.3), log(2·0.2/0.8), log(2·0.1/0.9)
    tensor([[ 1.5404, -0.6931, -1.5041]])
    """
    n_way = scores.shape[-1]
    if n_way < 2: raise ValueError(f'relevance needs two classes to compare, found scores of shape {tuple(scores.shape)}')
    scores = single(plain(scores.detach()))
    p = scores.nan_to_num(nan=torch.nan).softmax(-1)  # an infinite score is the largest there is
    return ((n_way - 1) * (p + eps) / (1 - p + eps)).log()


def contrast(
    scores: Tensor, # Scores `(..., n_way)`
) -> Tensor:
    """How each class's log-odds log(P_c / (1 − P_c)) change with every score, `(..., n_way explained, n_way)`; detached.

    The derivative is 1 for the class's own score, and negative for those of other classes, in proportion to their
    probabilities. Terms that all scores share cancel in log-odds.

    >>> contrast(torch.tensor([[0.5, 0.3, 0.2]]).log()).round(decimals=2)
    tensor([[[ 1.0000, -0.6000, -0.4000],
             [-0.7100,  1.0000, -0.2900],
             [-0.6200, -0.3800,  1.0000]]])
    """
    scores = scores.detach().as_subclass(Tensor).to(torch.promote_types(scores.dtype, torch.float32))
    return torch.eye(scores.shape[-1], dtype=scores.dtype, device=scores.device) - _others(scores).softmax(-1)


def log_odds(
    scores: Tensor, # Scores `(..., n_way)`
) -> Tensor:
    """The log-odds log(P_c / (1 − P_c)) of every class, in the same shape: exact where P_c itself would be rounded to 0 or 1.

    >>> log_odds(torch.tensor([[0.5, 0.3, 0.2]]).log()).round(decimals=2), log_odds(torch.tensor([[100., 0.]]))
    (tensor([[ 0.0000, -0.8500, -1.3900]]), tensor([[ 100., -100.]]))
    """
    return scores - _others(scores).logsumexp(-1)


def _others(scores: Tensor) -> Tensor:
    "For every class the scores of all classes, its own at −∞, `(..., n_way, n_way)`"
    own = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    return scores.unsqueeze(-2).expand(*scores.shape, scores.shape[-1]).masked_fill(own, -torch.inf)


def relevance_weights(
    R: Tensor, # Relevance of features: pairs `(n_query, n_way, C, ...)` or nodes `(n_graphs, n_nodes, C)`
    over: Over = 'channels', # The maximum of |R| is taken at each position over the channels, or over the whole map
    detach: bool = True, # The weights are constants for the gradient
) -> Tensor:
    """LRP weights 1 + R/max|R|, between 0 and 2, in the shape of `R` (Sun et al. 2020, equation (7)).

    Where nothing is relevant the weight is 1. Raises `ValueError` for an unknown `over`.

    >>> relevance_weights(torch.tensor([[[4., -2., 0.]]]))
    tensor([[[2.0000, 0.5000, 1.0000]]])
    """
    if over not in get_args(Over): raise ValueError(f'over={over!r}: choose from {get_args(Over)}')
    if detach: R = R.detach()
    # the first two dimensions count pairs or nodes, the third is the channel
    dims = (min(2, R.ndim - 1),) if over == 'channels' else tuple(range(min(2, R.ndim - 1), R.ndim))
    largest = R.abs().amax(dims, keepdim=True)
    return 1 + R / largest.masked_fill(largest == 0, 1)
