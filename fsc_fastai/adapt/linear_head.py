"The head of linear classifiers on features: of a fixed support it keeps a weight vector and a bias per class"
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..methods.head import Statistics, head_for
from ..tensors import full_precision
from .feature_net import FeatureHead, FeatureNet

__all__ = ['LinearHead']


@head_for(FeatureNet)
class LinearHead(FeatureHead):
    "Scores x·W + b of treated vectors; `support` holds Wᵀ and b `(n_way, d + 1)`"
    steps = (*FeatureHead.steps, 'classify')

    @classmethod
    def serves(cls, model: Any, method: type, statistics: Statistics) -> bool:
        "Is the fitted classifier linear, and the treatment of a query independent of the support?"
        fits = statistics == 'support' and model.adaptation.linear and model.adaptation.treats_alone
        return fits and super().serves(model, method, statistics)

    def condensed(self, f_support: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        "Weights and biases of the classes `(n_way, d + 1)`, and their one-hot labels"
        fitted = self.model.fit(f_support, member)
        return torch.cat([fitted.weight, fitted.bias]).mT.contiguous(), torch.eye(member.shape[1]).to(member)

    def treated(self, f_query: Tensor) -> Tensor:
        "Treated vectors `(n_query, d)`"
        x = self.model.vectors(f_query)
        return self.model.method.treating(x)(x)

    def classified(self, x: Tensor) -> Tensor:
        "Scores `(n_query, n_way)` of treated vectors"
        with full_precision(x): return F.linear(x, self.support[:, :-1], self.support[:, -1])

    def scores(self, f_query: Tensor) -> Tensor:
        "Scores `(n_query, n_way)` of maps or vectors"
        return self.classified(self.treated(f_query))

    def explained(self) -> Any:
        "The model for explanations of pixels, in which the weights are constants and all relevance goes to the query"
        model = super().explained()
        model.process, model.classify = lambda f_support, support_y, f_query: self.treated(f_query), self.classified
        return model
