"Losses of the few-shot methods, for scores `(n_query, n_way)` or a `training_output`"
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tensors import plain, single

__all__ = ['EpisodeCrossEntropy', 'SigmoidMSE', 'CrossAttentionLoss', 'LargeMarginCosine', 'PrototypicalTriplet', 'class_numbers']


class EpisodeCrossEntropy(nn.Module):
    "Mean cross entropy of scores `(n_query, n_way)`, or of scores at every position `(n_query, n_way, H, W)`"
    reduction = 'mean' # 'none' while fastai wants the loss of every query

    def forward(self, scores: Tensor, query_y: Tensor) -> Tensor:
        "The loss, given labels within the episode `(n_query,)`"
        target = plain(query_y)
        if scores.ndim > 2: target = target.view(-1, *[1] * (scores.ndim - 2)).expand(-1, *scores.shape[2:])
        return F.cross_entropy(single(scores), target, reduction=self.reduction)

    def activation(self, scores: Tensor) -> Tensor:
        "Probabilities in the shape of `scores`; fastai's `get_preds` calls this"
        return scores.softmax(1)

    def decodes(self, scores: Tensor) -> Tensor:
        "The likeliest class of each query `(n_query,)`"
        return scores.argmax(1)


class SigmoidMSE(EpisodeCrossEntropy):
    "Mean squared error between sigmoid scores and one-hot labels, RelationNet's published loss (Sung et al. 2018, equation (2))"
    def forward(self, scores: Tensor, query_y: Tensor) -> Tensor:
        "The loss, given labels within the episode `(n_query,)`"
        scores = single(scores)
        return F.mse_loss(scores.sigmoid(), F.one_hot(plain(query_y), scores.shape[1]).to(scores.dtype),
                          reduction=self.reduction)


class CrossAttentionLoss(EpisodeCrossEntropy):
    """Dense global cross entropy + `episodic` · dense cross entropy of the episode (Hou et al. 2019, section 3.3).

    Takes plain scores in evaluation; in training scores at every position and global scores for every class of the episode, of
    which those of the true class count.
    """
    def __init__(self, episodic: float = 0.5): # Weight of the episodic term; the global term has weight 1
        super().__init__()
        self.episodic = episodic

    def forward(self, output: Tensor | tuple[Tensor, Tensor], query_y: Tensor) -> Tensor: # type: ignore[override]
        "The loss, given labels `(n_query,)` that carry the `classes` of the episode within the training domain"
        if isinstance(output, Tensor): return super().forward(output, query_y)
        scores, global_scores = output
        way = plain(query_y)
        label = class_numbers(query_y, global_scores.shape[2], 'The global loss', 'build the model with n_classes=0')
        rows = torch.arange(way.shape[0], device=way.device)
        return super().forward(global_scores[rows, way], label) + self.episodic * super().forward(scores, way)


class LargeMarginCosine(EpisodeCrossEntropy):
    """Cross entropy after lowering the cosine of the true class by a margin (Yeh et al. 2020, after Wang et al. 2018, CosFace).

    Scores must be scaled cosines, such as those of `ProtoNet(distance='cosine', scale=30)`.
    """
    def __init__(self,
        margin: float = .35, # Margin of the cosine
        scale: float = 30., # Factor of the cosines in the scores
    ):
        super().__init__()
        self.margin, self.scale = margin, scale

    def forward(self, scores: Tensor, query_y: Tensor) -> Tensor:
        "The loss, given labels within the episode `(n_query,)`"
        true = F.one_hot(plain(query_y), scores.shape[1])
        return super().forward(single(scores) - self.margin * self.scale * true, query_y)


class PrototypicalTriplet(EpisodeCrossEntropy):
    """Mean of max(0, distance to the own prototype − distance to another prototype + margin) (Yeh et al. 2020).

    Scores must be negative squared distances, such as those of `ProtoNet`; the loss takes their roots.
    """
    def __init__(self,
        margin: float = 1., # Margin of the distances
    ):
        super().__init__()
        self.margin = margin

    def forward(self, scores: Tensor, query_y: Tensor) -> Tensor:
        "The loss, given labels within the episode `(n_query,)`"
        squared = -single(scores)
        distances = torch.where(squared > 0, squared, 1.).sqrt().where(squared > 0, 0.)  # at 0 a root has no gradient
        own = distances.gather(1, plain(query_y)[:, None])
        others = F.relu(own - distances + self.margin).masked_fill(F.one_hot(plain(query_y), scores.shape[1]).bool(), 0.)
        of_each = others.sum(1) / (scores.shape[1] - 1)
        return of_each if self.reduction == 'none' else of_each.mean()


def class_numbers(
    y: Tensor, # Labels within an episode that carry its `classes`
    n_classes: int, # Classes of the training domain
    who: str, # Who needs them, for the message of an error
    remedy: str, # What to do if labels carry no classes, for the message
) -> Tensor:
    "Labels within the training domain `(n,)`. Raises `ValueError` for labels without `classes` or beyond `n_classes`"
    classes = getattr(y, 'classes', None)
    if not classes:
        raise ValueError(f'{who} needs labels that carry the classes of their episode, as those of EpisodeDataLoaders do. '
                         f'Found plain labels: {remedy}')
    if max(classes) >= n_classes:
        raise ValueError(f'{who} knows {n_classes} classes, an episode has number {max(classes)}: pass the number of all classes')
    # a replayed step reads them from a fixed place
    numbers = y.numbers if hasattr(y, 'numbers') else torch.tensor(classes).to(y.device, non_blocking=True)
    return numbers[plain(y)]
