r"""Bayesian beliefs about a mean and a log variance, both series in the same features.

    y_i ~ N(φ_i'w, exp(φ_i'v)),   w ~ N(0, D_w),   v ~ N(0, D_v).

Given v the posterior of w is that of a ridge regression with weights exp(−φ_i'v). With r_i² = E[(y_i − φ_i'w)² | y, v], the
gradient of log p(y | v), w integrated out, is ½ Σ_i φ_i (r_i² exp(−φ_i'v) − 1) (Fisher's identity), and the information
about v is ½ Σ_i φ_i φ_i'. Fisher scoring, with w updated before each step, finds the mode of p(v | y). Laplace's method
around the mode gives a normal approximation of that posterior and the evidence

    log p(y) ≈ log p(y | v̂) + log N(v̂; 0, D_v) + ½ m log 2π − ½ log |D_v⁻¹ + ½ Σ_i φ_i φ_i'|.

All of this depends on sums over units only, so the order of units does not matter.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["SeriesBeliefs", "fit_beliefs", "prior_beliefs"]

_NUM_STEPS = 12  # of Fisher scoring; log variances are then within .003 of convergence on average
_LARGEST_STEP = 2.0  # in a log variance


class SeriesBeliefs(NamedTuple):
    """Normal posteriors of the coefficients of a mean and a log variance.

    Attributes:
        mean: Of w, (..., m).
        mean_chol: Lower Cholesky factor of the precision of w, (..., m, m).
        log_variance: Mean of v, (..., m).
        log_variance_chol: Lower Cholesky factor of the precision of v, (..., m, m).
        log_evidence: log p(y), (...).
    """

    mean: Tensor
    mean_chol: Tensor
    log_variance: Tensor
    log_variance_chol: Tensor
    log_evidence: Tensor

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Posterior means and variances of f(x) = φ'w, then of log σ²(x) = φ'v, each (...), for φ (..., m)."""
        parts = []
        for centre, chol in ((self.mean, self.mean_chol), (self.log_variance, self.log_variance_chol)):
            parts += [(features * centre).sum(-1), quadratic_form(chol, features)]
        return tuple(parts)  # pyright: ignore[reportReturnType]


def prior_beliefs(mean_sd: Tensor, log_variance_sd: Tensor, shape: tuple[int, ...]) -> SeriesBeliefs:
    """Beliefs before any unit, for a batch of `shape`, from prior sds (m,) of the coefficients."""
    zero = mean_sd.new_zeros(*shape, len(mean_sd))
    chols = [torch.diag(1 / sd).expand(*shape, len(sd), len(sd)) for sd in (mean_sd, log_variance_sd)]
    return SeriesBeliefs(zero, chols[0], zero, chols[1], zero.sum(-1))


def fit_beliefs(
    features: Tensor, outcome: Tensor, weight: Tensor, mean_sd: Tensor, log_variance_sd: Tensor
) -> SeriesBeliefs:
    """Beliefs after data.

    Args:
        features: φ_i, (..., n, m); broadcasts with the others.
        outcome: y_i, (..., n).
        weight: 1 for data to use, 0 for data to leave out, (..., n).
        mean_sd: Prior sd of w, (m,).
        log_variance_sd: Prior sd of v, (m,).
    """
    scaled, num = features.mT * weight.unsqueeze(-2), features.shape[-1]
    with_outcome = torch.cat([features.expand(*outcome.shape, -1), outcome.unsqueeze(-1)], -1)
    precision_w, precision_v = mean_sd**-2, log_variance_sd**-2

    def given(log_variance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights exp(−φ'v) (..., n), moments and mean of w (..., m, 1), and the factor of its precision."""
        inverse = (-log_variance).exp()
        gram, moment = ((scaled * inverse.unsqueeze(-2)) @ with_outcome).split([num, 1], -1)
        chol_w = torch.linalg.cholesky(gram + torch.diag(precision_w))
        return inverse, moment, torch.cholesky_solve(moment, chol_w), chol_w

    chol_v = torch.linalg.cholesky(0.5 * scaled @ features + torch.diag(precision_v))
    covariance_v = torch.cholesky_inverse(chol_v)
    v, log_variance = outcome.new_zeros(*outcome.shape[:-1], num), torch.zeros_like(outcome)
    for _ in range(_NUM_STEPS):
        inverse, _, w, chol_w = given(log_variance)
        both = features @ torch.cat([torch.cholesky_inverse(chol_w), w], -1)
        residual = (outcome - both[..., -1]).square() + (both[..., :-1] * features).sum(-1)
        gradient = 0.5 * _product(scaled, residual * inverse - 1) - precision_v * v
        move = _product(covariance_v, gradient)
        change = _product(features, move)
        shrink = _LARGEST_STEP / (change * weight).abs().amax(-1, keepdim=True).clamp_min(_LARGEST_STEP)
        v, log_variance = v + shrink * move, log_variance + shrink * change
    inverse, moment, w, chol_w = given(log_variance)
    fit = (weight * (outcome.square() * inverse + log_variance)).sum(-1) - (moment * w).sum((-2, -1))
    constants = weight.sum(-1) * math.log(2 * math.pi) + 2 * mean_sd.log().sum()
    log_likelihood = -0.5 * (constants + fit + _log_det(chol_w))
    prior = -0.5 * (precision_v * v.square()).sum(-1) - log_variance_sd.log().sum()
    evidence = log_likelihood + prior - 0.5 * _log_det(chol_v)
    return SeriesBeliefs(w.squeeze(-1), chol_w, v, chol_v, evidence)


def quadratic_form(chol: Tensor, features: Tensor) -> Tensor:
    """φ'(L L')⁻¹φ, (...), for lower triangular L (..., m, m) and φ (..., m)."""
    return torch.linalg.solve_triangular(chol, features.unsqueeze(-1), upper=False).square().sum((-2, -1))


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _log_det(chol: Tensor) -> Tensor:
    return 2 * chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
