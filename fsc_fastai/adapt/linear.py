"Linear classifiers fitted to the support: ridge regression, linear discriminant analysis, logistic regression"
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .base import register_adaptation
from .features import FeatureMethod, Fitted, Linear, means

__all__ = ['RidgeHead', 'LDAHead', 'LogisticHead']

NEWTON = 2000 # Most coefficients for Newton's method, whose matrix has their square


def class_weights(
    member: Tensor, # One-hot labels `(…, n, n_way)`
) -> Tensor:
    "Weights of the examples `(…, n, 1)` with mean 1 and the same sum for every class (scikit-learn's 'balanced')"
    shots = member.sum(-2, keepdim=True)
    return (member / shots).sum(-1, keepdim=True) * member.shape[-2] / member.shape[-1]


@register_adaptation('ridge')
@dataclass(kw_only=True)
class RidgeHead(FeatureMethod):
    """Ridge regression on one-hot targets, in closed form: W = Xᵀ(XXᵀ + αI)⁻¹Y of centred X and Y (scikit-learn's `Ridge`).

    Without `balanced`, a class with more examples than others gets higher scores for that alone.
    """
    linear = True
    alpha: float = 1. # Penalty
    intercept: bool = True # Fit a bias, which is not penalised
    balanced: bool = False # Give all classes the same weight, however many examples they have

    def adapt(self, support: Tensor, member: Tensor, query: Tensor | None) -> Fitted:
        "Solve with the Gram matrix of the support, which is smaller than the covariance of the features"
        if self.alpha <= 0: raise ValueError(f'RidgeHead(alpha={self.alpha}): above 0')
        weight = class_weights(member) if self.balanced else torch.ones_like(member[..., :1])
        x0, y0 = ((weight * t).mean(-2, keepdim=True) * self.intercept for t in (support, member))
        X, Y = (weight.sqrt() * (t - t0) for t, t0 in ((support, x0), (member, y0)))
        eye = torch.eye(X.shape[-2], dtype=X.dtype, device=X.device)
        W = X.mT @ torch.linalg.solve(X @ X.mT + self.alpha * eye, Y)
        return Linear(weight=W, bias=y0 - x0 @ W)


@register_adaptation('lda')
@dataclass(kw_only=True)
class LDAHead(FeatureMethod):
    """Linear discriminant analysis with a shrunk covariance and equal priors: scores xΣ⁻¹μ_k − ½μ_kΣ⁻¹μ_k.

    Σ is the mean over the classes of (1 − s)·C_k + s·(tr C_k / d)·I, as in scikit-learn's `LinearDiscriminantAnalysis` with
    `solver='lsqr'`. 'auto' is the shrinkage s of Ledoit and Wolf (2004) for the deviations of all classes from their means. With
    one example per class there are no deviations, and the nearest class mean has the highest score.
    """
    linear = True
    shrinkage: float | Literal['auto'] = 'auto' # s, above 0 and up to 1

    def adapt(self, support: Tensor, member: Tensor, query: Tensor | None) -> Fitted:
        "By Woodbury's identity, which inverts a matrix of the size of the support, not of the features"
        n_way, d = member.shape[-1], support.shape[-1]
        mu = means(support, member)
        shots = member @ member.sum(-2)[..., None]
        Z = (support - member @ mu) / (n_way * shots).sqrt()  # ZᵀZ is the mean of the C_k
        gram = Z @ Z.mT
        spread = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        s = _ledoit_wolf(support - member @ mu) if self.shrinkage == 'auto' else torch.as_tensor(self.shrinkage).to(Z)
        if (s <= 0).any(): raise ValueError(f'LDAHead(shrinkage={self.shrinkage}): above 0, up to 1')
        floor = torch.where(spread > 0, s * spread / d, 1.)
        eye = torch.eye(Z.shape[-2], dtype=Z.dtype, device=Z.device)
        within = torch.linalg.solve(floor / (1 - s).clamp(min=1e-12) * eye + gram, Z @ mu.mT)
        W = (mu.mT - Z.mT @ within) / floor
        return Linear(weight=W, bias=-(mu.mT * W).sum(-2, keepdim=True) / 2 - torch.log(torch.tensor(float(n_way))))


def _ledoit_wolf(x: Tensor) -> Tensor:
    "The shrinkage `(…, 1, 1)` of centred `x` `(…, n, d)` that Ledoit and Wolf (2004) estimate; 1 where nothing varies"
    n, d = x.shape[-2:]
    gram = x @ x.mT
    norms = gram.diagonal(dim1=-2, dim2=-1)
    total = norms.sum(-1) / n
    of_square = gram.square().sum((-2, -1)) / n**2
    delta = of_square - total.square() / d
    beta = (norms.square().sum(-1) / n - of_square) / n
    s = torch.where(delta > 0, torch.minimum(beta, delta) / torch.where(delta > 0, delta, 1.), 1.)
    return s.clamp(1e-6, 1)[..., None, None]


@register_adaptation('logistic')
@dataclass(kw_only=True)
class LogisticHead(FeatureMethod):
    """Logistic regression: min ½‖W‖² + C·Σ cross entropy, without a penalty of the bias (scikit-learn's `LogisticRegression`).

    Solved in double precision within the span of the support, by Newton's method, or by L-BFGS where Newton's matrix would be
    too large.
    """
    linear = True
    C: float = 1. # Inverse of the penalty
    rounds: int = 50 # Most Newton steps
    balanced: bool = False # Give all classes the same weight, however many examples they have

    def numbers(self, n_support: int, n_query: int, n_way: int, d: int) -> int:
        "The size of Newton's matrix in double precision"
        return 2 * (n_way * (min(n_support, d) + 1))**2

    def adapt(self, support: Tensor, member: Tensor, query: Tensor | None) -> Fitted:
        "Fit in coordinates of an orthonormal basis of the support, and one more for the bias"
        if self.C <= 0: raise ValueError(f'LogisticHead(C={self.C}): above 0')
        x = support.double() if support.device.type != 'mps' else support.cpu().double()
        U, S, V = torch.linalg.svd(x, full_matrices=False)
        Z = torch.cat([U * S[..., None, :], torch.ones_like(U[..., :1])], -1)
        penalty = torch.ones_like(Z[..., 0, :])
        penalty[..., -1] = 0
        B = self._minimum(Z, member.to(Z) * (class_weights(member.to(Z)) if self.balanced else 1), penalty)
        return Linear(weight=(V.mT @ B[..., :-1, :]).to(support), bias=B[..., -1:, :].to(support))

    def _value(self, B: Tensor, Z: Tensor, member: Tensor, penalty: Tensor) -> Tensor:
        "What is minimised, of each episode `(…)`"
        return ((penalty[..., None] * B * B).sum((-2, -1)) / 2 - self.C * (member * (Z @ B).log_softmax(-1)).sum((-2, -1)))

    def _descended(self, Z: Tensor, member: Tensor, penalty: Tensor) -> Tensor:
        "The coefficients `(…, r, n_way)` where the gradient all but vanishes"
        # in units in which the second derivative is near 1 at the start: a third of the rounds
        units = (penalty + self.C * Z.square().sum(-2) / member.shape[-1]).sqrt()
        with torch.inference_mode(False), torch.enable_grad():
            Z, member, penalty = Z / units[..., None, :], member.clone(), penalty / units**2
            B = torch.zeros(*Z.shape[:-2], Z.shape[-1], member.shape[-1], dtype=Z.dtype, device=Z.device, requires_grad=True)
            optimizer = torch.optim.LBFGS([B], max_iter=1000, tolerance_grad=1e-7, tolerance_change=1e-12, history_size=20,
                                          line_search_fn='strong_wolfe')
            def loss() -> Tensor:
                optimizer.zero_grad()
                value = self._value(B, Z, member, penalty).sum()
                value.backward()
                return value
            optimizer.step(loss)  # type: ignore[arg-type]
        return B.detach() / units[..., None]

    def _minimum(self, Z: Tensor, member: Tensor, penalty: Tensor) -> Tensor:
        "The coefficients `(…, r, n_way)` where the gradient vanishes; labels may weigh more or less than 1"
        r, n_way = Z.shape[-1], member.shape[-1]
        if r * n_way > NEWTON: return self._descended(Z, member, penalty)
        B = torch.zeros(*Z.shape[:-2], r, n_way, dtype=Z.dtype, device=Z.device)
        value = lambda B: self._value(B, Z, member, penalty)
        ridge, weight = torch.diag_embed(penalty), member.sum(-1, keepdim=True)
        eye = torch.eye(n_way, dtype=Z.dtype, device=Z.device)
        tol = 100 * torch.finfo(Z.dtype).eps * (1 + self.C * Z.abs().sum((-2, -1)))
        for _ in range(self.rounds):
            P = (Z @ B).softmax(-1)
            gradient = penalty[..., None] * B + self.C * Z.mT @ (weight * P - member)
            if (gradient.abs().amax((-2, -1)) <= tol).all(): break
            # d²/dB² : penalty ⊗ I + C·Σ z zᵀ ⊗ (diag p − p pᵀ); a common shift of all biases changes nothing, so it is held
            curve = torch.diag_embed(P) - P[..., :, None] * P[..., None, :]
            H = self.C * torch.einsum('...na,...nb,...nij->...aibj', weight * Z, Z, curve)
            H += torch.einsum('...ab,ij->...aibj', ridge, eye)
            H[..., -1, :, -1, :] += 1.
            step = torch.linalg.solve(H.flatten(-4, -3).flatten(-2, -1), gradient.flatten(-2, -1)).unflatten(-1, (r, n_way))
            B = _shortened(value, B, step, gradient)
        return B


def _shortened(value, B: Tensor, step: Tensor, gradient: Tensor) -> Tensor:
    "B minus a step that is halved until it pays (Armijo's condition), in each episode for itself"
    start, slope = value(B), (gradient * step).sum((-2, -1))
    size = torch.ones_like(start)
    for _ in range(30):
        enough = value(B - size[..., None, None] * step) <= start - 1e-4 * size * slope + 1e-9 * start.abs()
        if enough.all(): break
        size = torch.where(enough, size, size / 2)
    return B - size[..., None, None] * step
