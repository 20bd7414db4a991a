r"""Bayesian beliefs about the probability of a binary outcome, a logistic series.

    P(y_i = 1) = s(η + φ_i'w),   s(u) = 1 / (1 + exp(−u)),   w ~ N(0, D),

with η the logit of the pooled rate (Σ y + ½) / (n + 1) of all arms. Newton's method finds the mode of p(w | y); Laplace's
method around it gives a normal posterior N(ŵ, H⁻¹), H = D⁻¹ + Σ_i p_i (1 − p_i) φ_i φ_i', and the evidence. The predictive
probability is s(u / √(1 + π v / 8)) for a logit of mean u and variance v (MacKay 1992), and the predictive variance of an
outcome is p (1 − p): the noise and what is not known of p are both in it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .series_beliefs import quadratic_form

__all__ = ["BinaryBeliefs", "fit_binary_beliefs"]

_NUM_STEPS = 12  # of Newton's method
_LARGEST_STEP = 2.0  # in a logit


class BinaryBeliefs(NamedTuple):
    """Normal posterior of the coefficients of a logit.

    Attributes:
        centre: η, (...).
        mean: ŵ, (..., m).
        chol: Lower Cholesky factor of H, (..., m, m).
        log_evidence: log p(y), (...).
    """

    centre: Tensor
    mean: Tensor
    chol: Tensor
    log_evidence: Tensor

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Predictive mean and log variance of an outcome, each (...), for φ (..., m)."""
        logit = self.centre + (features * self.mean).sum(-1)
        logit = logit / (1 + math.pi / 8 * quadratic_form(self.chol, features)).sqrt()
        return logit.sigmoid(), -softplus(logit) - softplus(-logit)


def fit_binary_beliefs(features: Tensor, outcome: Tensor, weight: Tensor, sd: Tensor) -> BinaryBeliefs:
    """Beliefs after data, for all arms at once.

    Args:
        features: φ_i, (..., n, m); broadcasts with the others.
        outcome: y_i, 0 or 1, (K, ..., n).
        weight: 1 for data to use, 0 for data to leave out, (K, ..., n); the first dimension is the arm.
        sd: Prior sd of w, (m,).
    """
    rate = ((weight * outcome).sum((0, -1)) + 0.5) / (weight.sum((0, -1)) + 1)
    centre, precision = rate.logit().expand(outcome.shape[:-1]), torch.diag(sd**-2)
    w, logit = outcome.new_zeros(*outcome.shape[:-1], len(sd)), centre.unsqueeze(-1).expand_as(outcome)

    def hessian(logit: Tensor) -> Tensor:
        spread = weight * logit.sigmoid() * (-logit).sigmoid()
        return torch.linalg.cholesky((features.mT * spread.unsqueeze(-2)) @ features + precision)

    for _ in range(_NUM_STEPS):
        gradient = ((weight * (outcome - logit.sigmoid())).unsqueeze(-2) @ features).squeeze(-2) - w * sd**-2
        move = torch.cholesky_solve(gradient.unsqueeze(-1), hessian(logit)).squeeze(-1)
        change = (features @ move.unsqueeze(-1)).squeeze(-1)
        largest = (change * weight).abs().amax(-1, keepdim=True) if weight.shape[-1] else change.new_zeros(1)
        shrink = _LARGEST_STEP / largest.clamp_min(_LARGEST_STEP)
        w, logit = w + shrink * move, logit + shrink * change
    chol = hessian(logit)
    fit = -(weight * (softplus(logit) - outcome * logit)).sum(-1)
    prior = -0.5 * (w / sd).square().sum(-1) - sd.log().sum()
    return BinaryBeliefs(centre, w, chol, fit + prior - chol.diagonal(dim1=-2, dim2=-1).log().sum(-1))
