"Losses of the few-shot methods, for scores `(n_query, n_way)` and what `training_output` adds to them"
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['EpisodeCrossEntropy', 'SigmoidMSE', 'CrossAttentionLoss']


def _plain(y: Tensor) -> Tensor: return y.as_subclass(Tensor) if type(y) is not Tensor else y


class EpisodeCrossEntropy(nn.Module):
    "Cross entropy of scores `(n_query, n_way)`, or of scores at every position `(n_query, n_way, H, W)`, averaged"
    def forward(self, scores: Tensor, query_y: Tensor) -> Tensor:
        "`query_y` `(n_query,)`: labels within the episode"
        target = _plain(query_y)
        if scores.ndim > 2: target = target.view(-1, *[1] * (scores.ndim - 2)).expand(-1, *scores.shape[2:])
        return F.cross_entropy(scores.float(), target)

    def activation(self, scores: Tensor) -> Tensor:
        "Scores to probabilities"
        return scores.softmax(1)

    def decodes(self, scores: Tensor) -> Tensor:
        "Scores to the likeliest class"
        return scores.argmax(1)


class SigmoidMSE(EpisodeCrossEntropy):
    "Mean squared error between sigmoid scores and 1 or 0, the relation network's own loss (Sung et al. 2018, equation (2))"
    def forward(self, scores: Tensor, query_y: Tensor) -> Tensor:
        "`query_y` `(n_query,)`: labels within the episode"
        scores = scores.float()
        return F.mse_loss(scores.sigmoid(), F.one_hot(_plain(query_y), scores.shape[1]).to(scores.dtype))


class CrossAttentionLoss(EpisodeCrossEntropy):
    """The cross attention network's loss: dense global cross entropy + `episodic` · cross entropy of the episode (Hou et al. 2019, equation (8)).

    Takes plain scores (evaluation), or per-position scores with global scores of every way (training): the true way counts.
    """
    def __init__(self, episodic: float = 0.5): # Weight of the episodic term beside the global one
        super().__init__()
        self.episodic = episodic

    def forward(self, output: Tensor | tuple[Tensor, Tensor], query_y: Tensor) -> Tensor: # type: ignore[override]
        "`query_y` `(n_query,)` with its `classes`, the episode's classes among those of the training domain"
        if isinstance(output, Tensor): return super().forward(output, query_y)
        scores, global_scores = output
        way, label = _plain(query_y), global_labels(query_y)
        rows = torch.arange(way.shape[0], device=way.device)
        return super().forward(global_scores[rows, way], label) + self.episodic * super().forward(scores, way)


def global_labels(query_y: Tensor) -> Tensor:
    "Labels within the training domain, from labels within the episode and the `classes` that they carry"
    classes: Any = getattr(query_y, 'classes', None)
    if classes is None:
        raise ValueError('The global loss needs labels that carry the classes of their episode (an EpisodeLabel, as episodic '
                         'loaders give): found a plain tensor. Build the model with n_classes=0 to train without it')
    return torch.as_tensor(classes, device=query_y.device)[_plain(query_y)]
