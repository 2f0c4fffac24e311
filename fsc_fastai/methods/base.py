"Figure 2 of the paper as a class: encode the images, process the features, classify them"
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..tensors import plain
from .head import Head, Statistics, create_head
from .labels import class_means, episode_way, one_hot
from .losses import EpisodeCrossEntropy

__all__ = ['FewShotModel', 'Processed', 'episode_way', 'one_hot', 'class_means']


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
    classes_apart = False # Is the score of a class its own, whatever other classes are scored beside it?
    no_graph = '' # Why no graph of it can be exported, in words
    queries_apart = True # With fixed statistics, is a query's score its own, whatever other queries are scored with it?

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
        self._processed_hooks: OrderedDict[int, Callable[[FewShotModel, Any], None]] = OrderedDict()
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

    def evidence(self, f_p: Any) -> Tensor:
        "Scores but for what all classes of a query share, such as a normaliser: a difference of two is that of the scores"
        return self.classify(f_p)

    def attention_maps(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> tuple[Tensor, Tensor] | None:
        "Attention of the queries, and of the classes, both `(n_query, n_way, H, W)`; None for a method without"
        return None

    def compared_vectors(self, f_support: Tensor, f_query: Tensor) -> tuple[Tensor, Tensor] | None:
        """Vectors of one support image and one query, whose product is their similarity; None where the score is no product.

        Maps are `(1, C, H, W)`, vectors `(1, d)`. The score rises with the product, whatever else it takes in.
        """
        return None

    def default_loss(self) -> nn.Module:
        "The loss that the method is published with, of `training_output` in training and of scores in evaluation"
        return EpisodeCrossEntropy()

    def head(self,
        f_support: Tensor | None = None, # Feature maps `(n_support, C, H, W)`; None: a head to `fit`
        support_y: Tensor | None = None, # Labels `(n_support,)`, or one-hot `(n_support, n_way)`
        statistics: Statistics = 'batch', # Of batch norms that keep none: of the queries at hand, or fixed by the support
    ) -> Head:
        """This method beside a support set: `head(f_query)` gives scores `(n_query, n_way)`.

        With statistics of the 'batch' it is the method as published, and has gradients. Fixed by the 'support', a copy of the
        model in eval mode scores each query by itself. The best head that was registered by `head_for` is taken.
        """
        head = create_head(self, statistics)
        return head if f_support is None or support_y is None else head.fit(f_support, support_y)

    def forward_features(self, x: Tensor) -> Tensor:
        "timm's name for `encode`"
        return self.encode(x)

    def register_processed_hook(self,
        hook: Callable[[FewShotModel, Any], None], # `hook(model, f_p)`
    ) -> RemovableHandle:
        "Show `hook` the processed features of every pass, between `process` and `classify`; the handle's `remove` ends it"
        handle = RemovableHandle(self._processed_hooks)
        self._processed_hooks[handle.id] = hook
        return handle

    def forward_head(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Any:
        "`process` and `classify`, from feature maps to scores `(n_query, n_way)`"
        f_p = self.process(f_support, support_y, f_query)
        for hook in self._processed_hooks.values(): hook(self, f_p)
        return self.training_output(f_p) if self.training and not self.scores_only else self.classify(f_p)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Any:
        "Images of one episode to scores `(n_query, n_way)`"
        f = self.encode(torch.cat([plain(support_x), plain(query_x)]))
        return self.forward_head(f[:support_x.shape[0]], support_y, f[support_x.shape[0]:])
