r"""Layers of linear attention that do projected gradient descent: a net that is nearly right before it is trained.

In coefficients whitened by their prior sd, the mean f_a(x) = ψ(x)'z and the log variance log σ_a²(x) = χ(x)'u of each arm
have the posterior mode that minimises

    ½ Σ_i κ_i (y_i − ψ_i'z)² + ½ |z|²  with weights κ_i = exp(−χ_i'u),    ½ Σ_i (χ_i'u + r_i² κ_i) + ½ |u|²,

with sums over the units of that arm and r_i² = (y_i − ψ_i'z)² plus the posterior variance of ψ_i'z. Gradients are sums over
units of features (keys) times residuals (values), which is linear attention. The diagonals of the Hessians,
1 + Σ_i κ_i ψ_ij² and 1 + ½ Σ_i χ_ij², are sums of the same kind; their inverses precondition.
Layer l takes one step of size η_l for z and then for u, adds μ_l times
the step before, and projects onto the ball |z| ≤ R, which holds all but about 10⁻⁴ of the prior mass. Training learns the
step sizes of each coefficient, the momenta and the prior sds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...utils.checks import check_count, check_positive
from .base import StreamPredictions, TreatmentPolicy, neyman_propensity
from .unit_features import OutcomeUnit, UnitFeatures

__all__ = ["GradientExperimenter"]

_LARGEST_STEP = 2.0  # in a log variance


class _Solution(NamedTuple):
    """Coefficients and what is left of their prior variance of 1, each (*batch, rows, m)."""

    mean: Tensor
    mean_variance: Tensor
    log_variance: Tensor
    log_variance_variance: Tensor


class _State(NamedTuple):
    units: Tensor  # (*batch, n, m + 3)
    unit: OutcomeUnit
    solution: _Solution  # rows are arms


class GradientExperimenter(TreatmentPolicy):
    """Assigns by the Neyman rule under beliefs that a few steps of gradient descent find. It has some hundred weights.

    Args:
        covariate_dim: Number d of covariates.
        smoothness: α of the prior it starts from.
        num_layers: Steps of gradient descent.
        clip: Propensities lie in [clip, 1 − clip].
        num_functions: Functions in a series; see `UnitFeatures`.
        mean_scale: Prior sd of f_a(x), in units of `outcome_scale`.
        log_variance_scale: Prior sd of log σ_a²(x).
        covariate_low: Covariates lie roughly between these, a number or one for each.
        covariate_high: See `covariate_low`.
        outcome_centre: Location of outcomes. If None, the mean of the outcomes so far.
        outcome_scale: Scale of outcomes. If None, their standard deviation within arms so far.

    Attributes:
        units: Features of a unit.
        log_sds: Logs of the prior sds of mean and log-variance coefficients, learned.
        log_sizes: Logs of step sizes, learned, (num_layers, 2, m).
        momenta: Momentum of each step, learned, (num_layers, 2, 1).
        radius: Norm, in prior sds, beyond which coefficients are drawn back.

    Example:
        >>> policy = GradientExperimenter(covariate_dim=1, outcome_centre=0.0, outcome_scale=1.0)
        >>> state = policy.update(policy.initial_state(), torch.tensor([0.3]), torch.tensor(1.0), torch.tensor(2.0))
        >>> bool(policy.propensity(state, torch.tensor([0.3])) > 0.5)  # an outcome that far off speaks for noise
        True
    """

    reads_mixed_masks = True

    def __init__(
        self,
        covariate_dim: int,
        smoothness: float = 1.5,
        num_layers: int = 8,
        clip: float = 0.05,
        num_functions: int | None = None,
        mean_scale: float = 1.0,
        log_variance_scale: float = 1.5,
        covariate_low: float | Sequence[float] = 0.0,
        covariate_high: float | Sequence[float] = 1.0,
        outcome_centre: float | None = None,
        outcome_scale: float | None = None,
    ):
        unit: dict[str, Any] = {"num_functions": num_functions, "outcome_centre": outcome_centre}
        unit |= {"outcome_scale": outcome_scale, "covariate_low": covariate_low, "covariate_high": covariate_high}
        scales = {"mean_scale": mean_scale, "log_variance_scale": log_variance_scale}
        super().__init__(covariate_dim, clip, smoothness=smoothness, num_layers=num_layers, **scales, **unit)
        self.num_layers = check_count(num_layers, "num_layers")
        self.needs_outcomes = outcome_centre is None
        self.units = UnitFeatures(covariate_dim, check_positive(smoothness, "smoothness"), **unit)
        sds = self.units.prior_sds(smoothness, **scales)
        num = len(self.units)
        self.log_sds = nn.ParameterList(sd.float().log() for sd in sds)
        self.log_sizes = nn.Parameter(torch.full((self.num_layers, 2, num), math.log(0.9)))
        self.momenta = nn.Parameter(torch.full((self.num_layers, 2, 1), 0.3))
        self.radius = math.sqrt(num) + 3.0

    # ---- states

    def initial_state(self, batch_shape: Sequence[int] = ()) -> _State:
        """No unit."""
        return self._solve(torch.zeros(*batch_shape, 0, len(self.units) + 3, dtype=torch.float64))

    def update(self, state: _State, covariates: Tensor, arm: Tensor, outcome: Tensor) -> _State:
        """Descend anew with one more unit, at a cost of O(t)."""
        return self._solve(torch.cat([state.units, self.units.encode_unit(covariates, arm, outcome)], -2))

    def read(self, history: Tensor) -> _State:
        """All observed units of a history (*batch, T, d + 3)."""
        return self._solve(self.units.encode(history))

    def predict(self, state: _State, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Predictive mean and log variance; see `TreatmentPolicy`."""
        features = self.units.features(covariates.to(self.log_sizes)).unsqueeze(-2)
        return state.unit.rescale_any(*self._moments(state.solution, features), len(self.units))

    def along(self, history: Tensor, places: Tensor | None = None) -> StreamPredictions:
        """All units, or those at some places, side by side; see `TreatmentPolicy`."""
        places = torch.arange(history.shape[-2]) if places is None else places
        units = self.units.encode(history)
        arm, outcome, mask = (part.unsqueeze(-2) for part in units[..., -3:].unbind(-1))
        before = (torch.arange(units.shape[-2], device=units.device) < places.to(units.device).unsqueeze(-1)).to(units)
        unit = self.units.outcome_unit(arm, outcome, mask * before)
        weight = torch.stack([mask * (1 - arm), mask * arm], -2) * before.unsqueeze(-2)
        standard = unit.standardise(outcome).repeat_interleave(2, -2)
        solution = self._descend(units[..., :-3], standard, weight.flatten(-3, -2))
        solution = _Solution(*(part.unflatten(-2, (-1, 2)) for part in solution))
        features = units[..., places, :-3].to(self.log_sizes).unsqueeze(-2)
        mean, log_variance = unit.rescale_any(*self._moments(solution, features), len(self.units))
        return StreamPredictions(neyman_propensity(log_variance, self.clip), mean, log_variance)

    # ---- descent

    def _solve(self, units: Tensor) -> _State:
        arm, outcome, mask = units[..., -3:].unbind(-1)
        unit = self.units.outcome_unit(arm, outcome, mask)
        weight = torch.stack([mask * (1 - arm), mask * arm], -2)
        return _State(units, unit, self._descend(units[..., :-3], unit.standardise(outcome).unsqueeze(-2), weight))

    def _descend(self, features: Tensor, outcome: Tensor, weight: Tensor) -> _Solution:
        """Solutions (*batch, rows, m) for weights (*batch, rows, n) of units with features (*batch, n, m).

        Outcomes are (*batch, rows, n) or (*batch, 1, n), in standard units; those of weight 0 are not used.
        """
        features, outcome, weight = (part.to(self.log_sizes) for part in (features, outcome * (weight > 0), weight))
        psi, chi = (features * log_sd.exp() for log_sd in self.log_sds)
        psi_squared = psi.square()
        z = u = last_z = last_u = features.new_zeros(*weight.shape[:-1], features.shape[-1])
        spread_u = 1 / (1 + 0.5 * weight @ chi.square())
        spread_z = torch.ones_like(z)
        for size, momentum in zip(self.log_sizes.exp(), self.momenta, strict=True):
            precision = weight * torch.exp(-(u @ chi.mT).clamp(-15, 15))
            spread_z = 1 / (1 + precision @ psi_squared)
            step = size[0] * spread_z * ((precision * (outcome - z @ psi.mT)) @ psi - z) + momentum[0] * last_z
            z, last_z = self._project(z + step), step
            squares = (outcome - z @ psi.mT).square() + spread_z @ psi_squared.mT
            step = size[1] * spread_u * (0.5 * (precision * squares - weight) @ chi - u)
            furthest = (step @ chi.mT * weight).abs().amax(-1, keepdim=True) if weight.shape[-1] else 0 * step
            step = step * (_LARGEST_STEP / furthest.clamp_min(_LARGEST_STEP)) + momentum[1] * last_u
            u, last_u = self._project(u + step), step
        return _Solution(z, spread_z, u, spread_u)

    def _project(self, coefficients: Tensor) -> Tensor:
        """The nearest point of the ball."""
        norm = coefficients.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return coefficients * (self.radius / norm).clamp_max(1.0)

    def _moments(self, solution: _Solution, features: Tensor) -> tuple[Tensor, Tensor]:
        """Predictive means and log variances (..., 2) in standard units, for features (..., 1, m)."""
        psi, chi = (features * log_sd.exp() for log_sd in self.log_sds)
        noise = (chi * solution.log_variance + 0.5 * chi.square() * solution.log_variance_variance).sum(-1)
        unknown = (psi.square() * solution.mean_variance).sum(-1)
        return (psi * solution.mean).sum(-1), torch.logaddexp(noise, unknown.log())
