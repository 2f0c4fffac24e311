"Strangeness: the distance of an image from the nearest class, by which \"none of these\" is decided"
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from .held_out import folds_of

__all__ = ['Known', 'check_keep']


def check_keep(
    keep: float | None, # Share of images of the classes to answer
) -> None:
    "Raise `ValueError` unless `keep` is between 0 and 1, or None"
    if keep is not None and not 0 < keep < 1: raise ValueError(f'keep={keep}: wanted a share between 0 and 1')


def _vectors(features: Tensor) -> Tensor:
    "Maps or vectors as vectors of length 1 `(n, d)`"
    return F.normalize(features.float().flatten(2).mean(2) if features.ndim > 2 else features.float(), dim=1)


def _from_nearest(x: Tensor, means: Tensor) -> Tensor:
    return torch.cdist(x, means, compute_mode='donot_use_mm_for_euclid_dist').amin(1)


@dataclass(frozen=True)
class Known:
    """The class means, and the distances of images of these classes from the nearest mean, for features at unit length.

    On validation classes of miniImageNet at 5 shots these distances separate images of other classes as well as Mahalanobis
    distances with a shrunk covariance (AUROC 0.916 and 0.917), and better than distances of features not at unit length (0.832).
    """
    means: Tensor # Class means `(n_way, d)`
    of_held_out: Tensor # Distances of held-out examples from the nearest mean `(n,)`

    @classmethod
    def of(cls,
        features: Tensor, # Features of the examples `(n_support, ...)`
        member: Tensor, # Their one-hot labels `(n_support, n_way)`
        alone: bool = False, # Hold out no example
    ) -> Known:
        "Compute both from examples; each is held out in turn if its class has others"
        x, label = _vectors(features), member.argmax(1)
        fold = torch.full_like(label, -1) if alone else folds_of(member)
        shots, found = member.sum(0), [x.new_empty(0)]
        for k in range(int(fold.max()) + 1):
            out = fold == k
            rest = member[~out]
            # the mean of m vectors is off by a share 1/m of their variance: of what is held out, a mean of fewer
            shrink = ((1 + 1 / shots) / (1 + 1 / rest.sum(0))).sqrt()
            found.append(_from_nearest(x[out], rest.float().T @ x[~out] / rest.sum(0)[:, None]) * shrink[label[out]])
        return cls(member.float().T @ x / shots[:, None], torch.cat(found))

    def strangeness(self,
        features: Tensor, # Features of images `(n, ...)`
    ) -> Tensor:
        "The distance from the nearest class mean `(n,)`, from 0 to 2"
        return _from_nearest(_vectors(features), self.means)

    def limit(self,
        keep: float, # Share of images of these classes
    ) -> float | None:
        """The distance that a share `keep` of new images of these classes does not exceed; None for too few examples.

        Student's prediction limit m + t·s·√(1 + 1/n), which is exact for normal distances.
        """
        check_keep(keep)
        d = self.of_held_out.double()
        if len(d) < 2: return None
        return float(d.mean() + stats.t.ppf(keep, len(d) - 1) * d.std() * (1 + 1 / len(d))**.5)
