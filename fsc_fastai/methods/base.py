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
    """Processed features f_p that are more than one tensor: the base class of such dataclasses.

    `features` is the tensor that explanations explain and that `w * f_p` weights (Sun et al. 2020, equation 8). The other
    fields are what the classifier needs in addition.
    """
    features: Tensor

    @property
    def of_class(self) -> Tensor | None:
        """The class of each pair, one-hot `(n_way, n_pairs)`, if the features are pairs `(n_query, n_pairs, ...)`; else None.

        Pairs hold everything that the classifier sees, so they can be explained for each class separately.
        """
        return None

    def with_features(self, features: Tensor) -> Any:
        "A copy with other `features`, in a form that `classify` accepts"
        return replace(self, features=features)  # type: ignore[type-var]

    def __rmul__(self, w: Tensor) -> Any: return self.with_features(w * self.features)


class FewShotModel(nn.Module):
    """A few-shot classifier in the three steps of Figure 2. A method is a subclass with `process` and `classify`.

        encode   images → feature maps         `(n, C, H, W)`
        process  f_support, f_query → f_p      a tensor, or a `Processed`
        classify f_p → scores                  `(n_query, n_way)`, higher is likelier

    A method whose loss takes more than the scores in training overrides `training_output` and `default_loss`; with
    `scores_only` it returns plain scores in training too, for any other loss. A method that overrides `forward_head` needs
    neither `process` nor `classify`. `config` holds the plain values from which `create_fsc_model` built the model.
    """
    config: dict[str, Any]
    any_way = True # Any number of classes can be classified; False: only `n_way`
    scores_only = False # The loss takes plain scores in training too
    transductive = True # Confident queries may join the support set
    guidance: tuple[tuple[float, float], ...] = (1., .5), (1., 1.) # ξ and λ of guided training: for one shot, for more
    classes_apart = False # The score of a class does not depend on the other classes of the episode
    no_graph = '' # The reason, in words, why no graph of the model can be exported
    queries_apart = True # With fixed statistics, the scores of a query do not depend on the other queries

    def __init__(self,
        encoder: nn.Module, # Maps images to feature maps; has the attribute `out_shape` = (C, H, W)
        n_way: int | tuple[int, int] = 5, # Classes of a training episode, or (lowest, highest)
        n_classes: int = 0, # Classes of the training domain, for methods with a global classifier; 0: no such classifier
    ):
        super().__init__()
        if not isinstance(n_way, int) and not self.any_way:
            raise ValueError(f'{type(self).__name__} classifies episodes of one number of classes, found n_way={n_way}: its '
                             'label width is fixed by training. Give one number, or use RelationNet or ProtoNet')
        self.encoder, self.n_classes = encoder, n_classes
        self._processed_hooks: OrderedDict[int, Callable[[FewShotModel, Any], None]] = OrderedDict()
        self.n_way = n_way if isinstance(n_way, int) else max(n_way)

    def encode(self, x: Tensor) -> Tensor:
        "Encode images `(n, channels, height, width)` into feature maps `(n, C, H, W)`"
        return self.encoder(plain(x))

    # The next two are a method's own. They are not abstract, since one with a `forward_head` of its own calls neither

    def process(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Any:
        "Turn the feature maps of support and queries into f_p, which the classifier compares"
        raise NotImplementedError(f'{type(self).__name__} needs `process(f_support, support_y, f_query)`')

    def classify(self, f_p: Any) -> Tensor:
        "Scores `(n_query, n_way)` of the processed features"
        raise NotImplementedError(f'{type(self).__name__} needs `classify(f_p)`')

    def training_output(self, f_p: Any) -> Any:
        "The input of the loss in training: the scores, or a tuple that starts with them"
        return self.classify(f_p)

    def explained_scores(self, f_p: Any) -> Tensor:
        "The scores that an explanation starts from: those of `classify`, or these and more"
        return self.classify(f_p)

    def evidence(self, f_p: Any) -> Tensor:
        "Scores without terms that all classes of a query share, such as a normaliser: differences of two classes are unchanged"
        return self.classify(f_p)

    def attention_maps(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> tuple[Tensor, Tensor] | None:
        "Attention maps of the queries and of the classes, both `(n_query, n_way, H, W)`; None for a method without attention"
        return None

    def compared_vectors(self, f_support: Tensor, f_query: Tensor) -> tuple[Tensor, Tensor] | None:
        """Vectors of a support image and a query whose dot product is their similarity; None if the method has no such vectors.

        Takes feature maps `(1, C, H, W)` and returns vectors `(1, d)`. The score of the query rises with the product.
        """
        return None

    def default_loss(self) -> nn.Module:
        "The loss of the publication, which takes `training_output` in training and scores in evaluation"
        return EpisodeCrossEntropy()

    def head(self,
        f_support: Tensor | None = None, # Feature maps `(n_support, C, H, W)`; None: call `fit` later
        support_y: Tensor | None = None, # Labels `(n_support,)`, or one-hot `(n_support, n_way)`
        statistics: Statistics = 'batch', # For batch norms without running ones: of the 'batch' of queries, or of the 'support'
    ) -> Head:
        """This method beside a support set: `head(f_query)` gives scores `(n_query, n_way)`.

        With 'batch' statistics it is the published method, with gradients. With 'support' statistics a copy of the model in
        eval mode scores each query independently of the others. A faster head that `head_for` registered is used if it applies.

            head = model.head(model.encode(support_x), support_y)
            scores = head(model.encode(query_x))
        """
        head = create_head(self, statistics)
        return head if f_support is None or support_y is None else head.fit(f_support, support_y)

    def forward_features(self, x: Tensor) -> Tensor:
        "timm's name for `encode`"
        return self.encode(x)

    def register_processed_hook(self,
        hook: Callable[[FewShotModel, Any], None], # `hook(model, f_p)`
    ) -> RemovableHandle:
        "Call `hook` with the processed features of every forward pass; the handle's `remove` ends it"
        handle = RemovableHandle(self._processed_hooks)
        self._processed_hooks[handle.id] = hook
        return handle

    def forward_head(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Any:
        "Scores `(n_query, n_way)` from feature maps: `process`, then `classify`"
        f_p = self.process(f_support, support_y, f_query)
        for hook in self._processed_hooks.values(): hook(self, f_p)
        return self.training_output(f_p) if self.training and not self.scores_only else self.classify(f_p)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Any:
        "Scores `(n_query, n_way)` from the images of one episode"
        f = self.encode(torch.cat([plain(support_x), plain(query_x)]))
        return self.forward_head(f[:support_x.shape[0]], support_y, f[support_x.shape[0]:])
