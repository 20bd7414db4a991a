"""Units as numbers for series: features of the covariates, the arm, and the outcome in standard units.

Series have priors of scale one, so outcomes are standardised: (y − c) / s. If the user does not say c or s, they are the
mean and the standard deviation within arms of the outcomes so far. A policy then proposes the same for y, 1000 y + 7 and
y / 1000. It still sees outcomes before the unit alone, so inference stays valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...simulators.treatment.function_basis import CosineSeries, RandomFeatures
from ...utils.checks import as_finite_tensor, check_positive
from .arm_moments import ArmMoments

__all__ = ["OutcomeUnit", "UnitFeatures", "two_values"]

_MOST_COSINE_DIMS = 3
_ROUNDING = 1e-10  # a spread below this share of the outcomes' size is rounding
_FEWEST_FOR_BINARY = 8  # outcomes of two values that are taken for binary


def two_values(outcome: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lowest and highest outcome, and whether there are no others, each (*batch), for outcomes (*batch, n) that are seen.

    0, 1 and False where outcomes take other values, or are fewer than eight.
    """
    if outcome.shape[-1] < _FEWEST_FOR_BINARY:
        none = outcome.new_zeros(outcome.shape[:-1])
        return none, none + 1, none > 0
    low = torch.where(seen, outcome, torch.inf).amin(-1)
    high = torch.where(seen, outcome, -torch.inf).amax(-1)
    at_ends = (outcome == low.unsqueeze(-1)) | (outcome == high.unsqueeze(-1)) | ~seen
    holds = at_ends.all(-1) & (high > low) & (seen.sum(-1) >= _FEWEST_FOR_BINARY)
    return torch.where(holds, low, 0.0), torch.where(holds, high, 1.0), holds


class OutcomeUnit(NamedTuple):
    """Location and scale of outcomes.

    Attributes:
        centre: Location, (*batch).
        scale: Scale, (*batch), positive; 1 where it is not known.
        known: Whether the scale is known, (*batch).
        moments: Of the arms, for predictions where it is not.
        low: Lower of two values, (*batch), where outcomes take no others.
        high: Higher of them, (*batch).
        binary: Whether they take no others, (*batch).
    """

    centre: Tensor
    scale: Tensor
    known: Tensor
    moments: ArmMoments
    low: Tensor
    high: Tensor
    binary: Tensor

    def for_rows(self) -> OutcomeUnit:
        """The same for several units of each experiment: everything has one more dimension, (*batch, 1)."""
        parts = {name: part.unsqueeze(-1) for name, part in self._asdict().items() if name != "moments"}
        return OutcomeUnit(**parts, moments=ArmMoments(*(part.unsqueeze(-2) for part in self.moments)))

    def standardise(self, outcome: Tensor) -> Tensor:
        """Outcomes (*batch, n) in standard units; 0 where there is no scale yet."""
        return (outcome - self.centre.unsqueeze(-1)) / self.scale.unsqueeze(-1) * self.known.unsqueeze(-1)

    def rescale(self, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log variances (*sample, *batch, K), given in standard units, in the outcome's own unit.

        Where there is no scale yet they are those of the arms so far.
        """
        centre, scale, known = (part.unsqueeze(-1) for part in (self.centre, self.scale, self.known))
        plain = self.moments.predict()
        mean = torch.where(known, mean * scale + centre, plain[0])
        return mean, torch.where(known, log_variance + 2 * scale.log(), plain[1])

    def rescale_any(self, mean: Tensor, log_variance: Tensor, num_functions: int) -> tuple[Tensor, Tensor]:
        """The same, but the variance of outcomes with two values follows from their mean: p (1 − p) times (high − low)².

        Each of m functions is learnt from about n_a / m units of arm a, so p is kept 1 / (n_a / m + 2) away from 0 and 1.
        """
        mean, log_variance = self.rescale(mean, log_variance)
        if not bool(self.binary.any()):
            return mean, log_variance
        low, width, binary = (part.unsqueeze(-1) for part in (self.low, self.high - self.low, self.binary))
        least = 1 / (self.moments.count / num_functions + 2)
        share = torch.maximum(torch.minimum((mean - low) / width, 1 - least), least)
        log_noise = (share * (1 - share)).log() + 2 * width.log()
        return torch.where(binary, low + share * width, mean), torch.where(binary, log_noise, log_variance)


class UnitFeatures(nn.Module):
    """Features of units: tensor products of cosines for up to three covariates, beyond linear and random features.

    Args:
        covariate_dim: Number d of covariates.
        smoothness: α of random features.
        num_functions: Number m of features; if None 10 for one covariate, 30 for two or three, 30 + 2 d for more.
        covariate_low: Covariates lie roughly between these, a number or one for each.
        covariate_high: See `covariate_low`.
        outcome_centre: Location of outcomes; the mean so far if None.
        outcome_scale: Scale of outcomes; their standard deviation within arms so far if None.

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
        outcome_centre: float | None = None,
        outcome_scale: float | None = None,
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
        self.outcome_centre = None if outcome_centre is None else float(outcome_centre)
        self.outcome_scale = None if outcome_scale is None else check_positive(outcome_scale, "outcome_scale")

    def __len__(self) -> int:
        return len(self.basis)

    @property
    def knows_unit(self) -> bool:
        """Whether location and scale of outcomes are given."""
        return self.outcome_centre is not None and self.outcome_scale is not None

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
        """Features (m), arm, outcome in its own unit and mask, (..., m + 3), float64, of units (..., d + 3)."""
        history = history.double()
        arm, outcome, mask = history[..., -3:].split(1, -1)
        return torch.cat([self.features(history[..., :-3]), arm, outcome * mask, mask], -1)

    def encode_unit(self, covariates: Tensor, arm: Tensor, outcome: Tensor) -> Tensor:
        """The same, (..., 1, m + 3), of one observed unit: covariates (..., d), arm (...), outcome (...)."""
        arm, outcome = arm.double(), outcome.double()
        rest = torch.stack([arm, outcome, torch.ones_like(outcome)], -1)
        return self.encode(torch.cat([covariates.double(), rest], -1)).unsqueeze(-2)

    def outcome_unit(self, arm: Tensor, outcome: Tensor, weight: Tensor, *, num_arms: int = 2) -> OutcomeUnit:
        """Location and scale: what was given, else from outcomes (*batch, n) whose weight is 1, in arms (*batch, n).

        While outcomes do not vary there is no scale.
        """
        arm, outcome, weight = torch.broadcast_tensors(arm, outcome, weight)
        count, moments = weight.sum(-1), ArmMoments.of(arm, outcome, weight, num_arms=num_arms)
        values = two_values(outcome, weight > 0)
        if self.outcome_centre is None:
            centre = (weight * outcome).sum(-1) / count.clamp_min(1)
        else:
            centre = torch.full_like(count, self.outcome_centre)
        if self.outcome_scale is not None:
            known = torch.ones_like(count, dtype=torch.bool) if self.knows_unit else count > 0
            return OutcomeUnit(centre, torch.full_like(count, self.outcome_scale), known, moments, *values)
        freedom = count - (moments.count > 0).sum(-1)
        within = (moments.squares.sum(-1) / freedom.clamp_min(1)).sqrt()
        overall = (weight * (outcome - centre.unsqueeze(-1)).square()).sum(-1)
        overall = (overall / (count - 1).clamp_min(1)).sqrt()
        size = (weight * outcome).abs().amax(-1) if outcome.shape[-1] else centre.abs()
        scale = torch.where(within > _ROUNDING * size, within, overall)
        known = scale > _ROUNDING * size
        return OutcomeUnit(centre, torch.where(known, scale, 1.0), known, moments, *values)
