"Figure 2 of the paper as a class: encode the images, process the features, classify them"
from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..tensors import full_precision, plain
from .losses import EpisodeCrossEntropy

__all__ = ['FewShotModel', 'Processed', 'episode_way', 'one_hot', 'class_means']


def episode_way(support_y: Tensor) -> int:
    """The number of classes of an episode, from the labels of its support.

    An episodic loader's labels carry their `classes`, and one-hot labels have a column for each class: both tell without asking
    the device. Plain integer labels are 0…n_way−1, all of them: `ValueError` where a class has no support.
    """
    if support_y.ndim == 2: return support_y.shape[1]
    classes = getattr(support_y, 'classes', None)
    if classes: return len(classes)
    found = plain(support_y).unique().tolist()
    if found and found == list(range(len(found))): return len(found)
    raise ValueError(f'labels of a support set are 0…n_way−1, each of them at least once: found {found or "no labels at all"}')


def one_hot(
    support_y: Tensor, # Labels `(n_support,)`, or already one-hot `(n_support, n_way)`
    dtype: torch.dtype = torch.float32, # Type of the result
) -> Tensor:
    "`support_y` as a matrix `(n_support, n_way)`"
    if support_y.ndim == 2: return plain(support_y).to(dtype)
    return (plain(support_y)[:, None] == torch.arange(episode_way(support_y), device=support_y.device)).to(dtype)


def class_means(
    f_support: Tensor, # Features `(n_support, ...)`
    support_y: Tensor, # Labels `(n_support,)`, or one-hot `(n_support, n_way)`
) -> Tensor:
    """The mean feature of each class, `(n_way, ...)`; classes may have unequal shots, and come in any order.

    >>> class_means(torch.tensor([[1.], [10.], [3.]]), torch.tensor([0, 1, 0]))
    tensor([[ 2.],
            [10.]])
    """
    member = one_hot(support_y, f_support.dtype)
    with full_precision(f_support): total = member.T @ f_support.flatten(1)
    return (total / member.sum(0)[:, None]).unflatten(1, f_support.shape[1:])


class Processed:
    """What `process` hands to `classify`, where that is more than one tensor (a dataclass that inherits from this).

    `features` is the tensor that explanations explain and that `w * f_p` weights (equation 8 of the paper);
    the other fields are what the classifier needs besides.
    """
    features: Tensor

    @property
    def of_class(self) -> Tensor | None:
        """Which pairs are of which class `(n_way, n_pairs)`, where features are pairs `(n_query, n_pairs, ...)`; else None.

        Then they hold all that the classifier sees of support and query, so that they can be explained for each class apart.
        """
        return None

    def with_features(self, features: Tensor) -> Any:
        "The same with other `features`: something that `classify` accepts"
        return replace(self, features=features)  # type: ignore[type-var]

    def __rmul__(self, w: Tensor) -> Any: return self.with_features(w * self.features)


class FewShotModel(nn.Module):
    """A few-shot classifier in the three steps of Figure 2. A method is a subclass with `process` and `classify`.

        encode   images → feature maps        `(n, C, H, W)`
        process  f_support, f_query → f_p      a tensor, or a `Processed`
        classify f_p → scores                 `(n_query, n_way)`, higher is likelier

    A method that overrides `forward_head` needs neither of these two, so that they are asked for when they are called.
    In training a method may give its loss more than the scores: it overrides `training_output` and `default_loss`. With
    `scores_only` it gives the scores in training too, which is what any other loss takes.
    `config`, where `create_fsc_model` built the model, holds the plain values that build it again.
    """
    config: dict[str, Any]
    any_way = True # Are episodes of any number of classes classified, or of `n_way` only?
    scores_only = False # Are the scores all that the loss takes in training?
    transductive = True # May confident queries join the support set?
    guidance: tuple[tuple[float, float], ...] = (1., .5), (1., 1.) # ξ and λ of guided training: for one shot, for more

    def __init__(self,
        encoder: nn.Module, # Images `(n, 3, size, size)` to feature maps, with the attribute `out_shape` = (C, H, W)
        n_way: int | tuple[int, int] = 5, # Classes of a training episode, or (lowest, highest)
        n_classes: int = 0, # Classes of the training domain, for methods with a global classifier; 0: without
    ):
        super().__init__()
        if not isinstance(n_way, int) and not self.any_way:
            raise ValueError(f'{type(self).__name__} classifies episodes of one number of classes, found n_way={n_way}: its '
                             'label width is fixed by training. Give one number, or use RelationNet or ProtoNet')
        self.encoder, self.n_classes = encoder, n_classes
        self.n_way = n_way if isinstance(n_way, int) else max(n_way)

    def encode(self, x: Tensor) -> Tensor:
        "Images `(n, 3, height, width)` to feature maps `(n, C, H, W)`"
        return self.encoder(plain(x))

    # The next two are a method's own. They are not abstract, since one with a `forward_head` of its own calls neither

    def process(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Any:
        "Feature maps of support and queries to what the classifier compares, f_p"
        raise NotImplementedError(f'{type(self).__name__} needs `process(f_support, support_y, f_query)`')

    def classify(self, f_p: Any) -> Tensor:
        "Scores `(n_query, n_way)` of the processed features"
        raise NotImplementedError(f'{type(self).__name__} needs `classify(f_p)`')

    def training_output(self, f_p: Any) -> Any:
        "What the loss takes in training mode: the scores, or a tuple that starts with them"
        return self.classify(f_p)

    def explained_scores(self, f_p: Any) -> Tensor:
        "What an explanation starts from and `classify` returns, or more of it"
        return self.classify(f_p)

    def attention_maps(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> tuple[Tensor, Tensor] | None:
        "Attention of the queries, and of the classes, both `(n_query, n_way, H, W)`; None for a method without"
        return None

    def default_loss(self) -> nn.Module:
        "The loss that the method is published with, of `training_output` in training and of scores in evaluation"
        return EpisodeCrossEntropy()

    def prepared(self, f: Tensor) -> tuple[Any, Tensor]:
        """What scores many episodes of the same images fastest: something with `forward_head`, and the images for it.

        `f` holds a feature map for each image; so does what is returned, in any form. Scores are the same up to rounding.
        """
        return self, f

    def forward_features(self, x: Tensor) -> Tensor:
        "timm's name for `encode`"
        return self.encode(x)

    def forward_head(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Any:
        "`process` and `classify`, from feature maps to scores `(n_query, n_way)`"
        f_p = self.process(f_support, support_y, f_query)
        return self.training_output(f_p) if self.training and not self.scores_only else self.classify(f_p)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Any:
        "Images of one episode to scores `(n_query, n_way)`"
        f = self.encode(torch.cat([plain(support_x), plain(query_x)]))
        return self.forward_head(f[:support_x.shape[0]], support_y, f[support_x.shape[0]:])
