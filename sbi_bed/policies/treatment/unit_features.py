"""Units as numbers for series: features of the covariates, the arm, and the outcome in standard units."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...simulators.treatment.function_basis import CosineSeries, RandomFeatures
from ...utils.checks import as_finite_tensor, check_positive

__all__ = ["UnitFeatures"]

_MOST_COSINE_DIMS = 3


class UnitFeatures(nn.Module):
    """Features of units: tensor products of cosines for up to three covariates, beyond linear and random features.

    Args:
        covariate_dim: Number d of covariates.
        smoothness: α of random features.
        num_functions: Number m of features; if None 10 for one covariate, 30 for two or three, 30 + 2 d for more.
        covariate_low: Covariates lie roughly between these, a number or one for each.
        covariate_high: See `covariate_low`.
        outcome_centre: What outcomes are roughly around.
        outcome_scale: About the sd of an outcome.

    Raises:
        ValueError: If a range is empty or a scale not positive.
    """

    low: Tensor
    width: Tensor

    def __init__(
        self,
        covariate_dim: int,
        smoothness: float = 1.5,
        num_functions: int | None = None,
        covariate_low: float | Sequence[float] = 0.0,
        covariate_high: float | Sequence[float] = 1.0,
        outcome_centre: float = 0.0,
        outcome_scale: float = 1.0,
    ):
        super().__init__()
        if covariate_dim <= _MOST_COSINE_DIMS:
            self.basis = CosineSeries(covariate_dim, num_functions or (10 if covariate_dim <= 1 else 30))
        else:
            self.basis = RandomFeatures(covariate_dim, num_functions or 30 + 2 * covariate_dim, smoothness)
        low, high = (as_finite_tensor(v, "the range of covariates").double() for v in (covariate_low, covariate_high))
        if not bool((high > low).all()):
            raise ValueError(f"covariate_high must be above covariate_low, got {covariate_high} and {covariate_low}.")
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("width", high - low, persistent=False)
        self.outcome_centre, self.outcome_scale = float(outcome_centre), check_positive(outcome_scale, "outcome_scale")

    def __len__(self) -> int:
        return len(self.basis)

    def prior_sds(self, smoothness: float, mean_scale: float, log_variance_scale: float) -> tuple[Tensor, Tensor]:
        """Prior sds of the coefficients of f_a and of log σ_a², (m,) each.

        Raises:
            ValueError: If a scale is not positive.
        """
        scales = check_positive(mean_scale, "mean_scale"), check_positive(log_variance_scale, "log_variance_scale")
        mean_sd, log_variance_sd = (self.basis.sd(smoothness, scale) for scale in scales)
        return mean_sd, log_variance_sd

    def features(self, covariates: Tensor) -> Tensor:
        """φ(x), (..., m), for covariates (..., d)."""
        return self.basis.features((covariates - self.low.to(covariates)) / self.width.to(covariates))

    def encode(self, history: Tensor) -> Tensor:
        """Features (m), arm, standardised outcome and mask, (..., m + 3), of units (..., d + 3)."""
        arm, outcome, mask = history[..., -3:].split(1, -1)
        outcome = (outcome - self.outcome_centre) / self.outcome_scale * mask
        return torch.cat([self.features(history[..., :-3]), arm, outcome, mask], -1)

    def encode_unit(self, covariates: Tensor, arm: Tensor, outcome: Tensor) -> Tensor:
        """The same, (..., 1, m + 3), of one observed unit: covariates (..., d), arm (...), outcome (...)."""
        arm, outcome = arm.to(covariates), outcome.to(covariates)
        rest = torch.stack([arm, outcome, torch.ones_like(outcome)], -1)
        return self.encode(torch.cat([covariates, rest], -1)).unsqueeze(-2)

    def rescale(self, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance in the outcome's own units, of those in standard units."""
        return mean * self.outcome_scale + self.outcome_centre, log_variance + 2 * math.log(self.outcome_scale)
