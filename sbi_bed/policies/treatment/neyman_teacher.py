r"""The Neyman propensity under Bayesian nonparametric beliefs: the teacher that experimenter nets imitate.

Beliefs about f_a and log σ_a² are series with a normal prior of known smoothness (`series_beliefs`), updated by the units so
far. From the posterior log σ_a²(x) ~ N(μ_a, s_a²), f_a(x) ~ N(m_a, c_a²), the propensity is one of

- "predictive": √v_1 / (√v_1 + √v_0) with v_a = exp(μ_a + s_a²/2) + c_a², which minimises the expected variance of the next
  term of the estimate;
- "posterior": the posterior mean of σ_1 / (σ_1 + σ_0), by Gauss-Hermite quadrature over log σ_1² − log σ_0²;
- "plug-in": the Neyman propensity at the posterior means of log σ_a².
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...utils.checks import check_count, check_positive
from .base import TreatmentPolicy, check_units, neyman_propensity
from .series_beliefs import SeriesBeliefs, fit_beliefs, prior_beliefs
from .unit_features import UnitFeatures

__all__ = ["NeymanTeacher"]

_RULES = ("predictive", "posterior", "plug-in")


class _State(NamedTuple):
    units: Tensor  # features, arm, standardised outcome, mask, (*batch, n, m + 3)
    beliefs: SeriesBeliefs  # of both arms, (2, *batch)
    num_fitted: int


class NeymanTeacher(TreatmentPolicy):
    """Assigns by the Neyman rule under Bayesian beliefs. It has no weights to train, and computes in float64.

    Args:
        covariate_dim: Number d of covariates, 0 or more.
        smoothness: α of the prior.
        clip: Propensities lie in [clip, 1 − clip].
        burn_in: Number of first units that a fair coin assigns.
        refit_every: Live, beliefs are updated each time this number of outcomes has come, at a cost of O(t). A history that
            is given at once is always read to its end.
        rule: "predictive", "posterior" or "plug-in", see above.
        num_functions: Functions in a series; see `UnitFeatures`.
        mean_scale: Prior sd of f_a(x), in units of `outcome_scale`.
        log_variance_scale: Prior sd of log σ_a²(x).
        covariate_low: Covariates lie roughly between these, a number or one for each; for standard normal ones take
            ∓1.73. Beyond them series are mirrored, and random features go on.
        covariate_high: See `covariate_low`.
        outcome_centre: What outcomes are roughly around.
        outcome_scale: About the sd of an outcome.

    Covariates up to three have tensor products of cosines, more have linear functions and random features.

    Attributes:
        units: Features of a unit.
        mean_sd: Prior sds of the coefficients of f_a, (m,).
        log_variance_sd: Prior sds of the coefficients of log σ_a², (m,).
        nodes: Gauss–Hermite nodes of the integral over beliefs about a log-variance, (12,).
        node_weights: Their weights, (12,).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> teacher = NeymanTeacher(covariate_dim=1, smoothness=1.5)
        >>> history = torch.zeros(4, 30, 4)  # four experiments of no unit yet, padded
        >>> teacher(history, torch.rand(4, 1))
        tensor([0.5000, 0.5000, 0.5000, 0.5000], dtype=torch.float64)
    """

    reads_mixed_masks = True
    mean_sd: Tensor
    log_variance_sd: Tensor
    nodes: Tensor
    node_weights: Tensor

    def __init__(
        self,
        covariate_dim: int,
        smoothness: float = 1.5,
        clip: float = 0.05,
        burn_in: int = 20,
        refit_every: int = 10,
        rule: Literal["predictive", "posterior", "plug-in"] = "predictive",
        num_functions: int | None = None,
        mean_scale: float = 1.0,
        log_variance_scale: float = 1.5,
        covariate_low: float | Sequence[float] = 0.0,
        covariate_high: float | Sequence[float] = 1.0,
        outcome_centre: float = 0.0,
        outcome_scale: float = 1.0,
    ):
        super().__init__(
            covariate_dim=covariate_dim,
            smoothness=smoothness,
            clip=clip,
            burn_in=burn_in,
            refit_every=refit_every,
            rule=rule,
            num_functions=num_functions,
            mean_scale=mean_scale,
            log_variance_scale=log_variance_scale,
            covariate_low=covariate_low,
            covariate_high=covariate_high,
            outcome_centre=outcome_centre,
            outcome_scale=outcome_scale,
        )
        self.smoothness = check_positive(smoothness, "smoothness")
        self.burn_in, self.refit_every = check_count(burn_in, "burn_in", 0), check_count(refit_every, "refit_every")
        if rule not in _RULES:
            raise ValueError(f"rule must be one of {', '.join(map(repr, _RULES))}, got {rule!r}.")
        self.rule = rule
        scaling = (num_functions, covariate_low, covariate_high, outcome_centre, outcome_scale)
        self.units = UnitFeatures(covariate_dim, self.smoothness, *scaling)
        mean_sd, log_variance_sd = self.units.prior_sds(self.smoothness, mean_scale, log_variance_scale)
        self.register_buffer("mean_sd", mean_sd, persistent=False)
        self.register_buffer("log_variance_sd", log_variance_sd, persistent=False)
        nodes, weights = np.polynomial.hermite_e.hermegauss(12)
        self.register_buffer("nodes", torch.from_numpy(nodes), persistent=False)
        self.register_buffer("node_weights", torch.from_numpy(weights / weights.sum()), persistent=False)

    # ---- states

    def initial_state(self, batch_shape: Sequence[int] = ()) -> _State:
        """Prior beliefs."""
        shape = tuple(batch_shape)
        units = self.mean_sd.new_zeros(*shape, 0, len(self.units) + 3)
        return _State(units, prior_beliefs(self.mean_sd, self.log_variance_sd, (2, *shape)), 0)

    def update(self, state: _State, covariates: Tensor, arm: Tensor, outcome: Tensor) -> _State:
        """Beliefs after one more unit, if it is time to refit."""
        unit = self.units.encode_unit(covariates.double(), arm, outcome)
        units = torch.cat([state.units, unit], -2)
        if units.shape[-2] - state.num_fitted < self.refit_every:
            return _State(units, state.beliefs, state.num_fitted)
        return _State(units, self._fit(units), units.shape[-2])

    def read(self, history: Tensor) -> _State:
        """Beliefs from all observed units of a history (*batch, T, d + 3)."""
        units = self.units.encode(history.double())
        if units.shape[-2] == 0:
            return self.initial_state(units.shape[:-2])
        return _State(units, self._fit(units), units.shape[-2])

    # ---- what follows from beliefs

    def predict(self, state: _State, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Predictive mean and log variance, what is not known about both included; see `TreatmentPolicy`."""
        mean, mean_variance, log_variance, spread = self._moments(state, covariates)
        total = torch.logaddexp(log_variance + 0.5 * spread, mean_variance.log())
        return self.units.rescale(mean, total)

    def propensity(self, state: _State, covariates: Tensor) -> Tensor:
        """Probability of arm 1 by the rule; ½ in the burn-in."""
        if self.rule == "predictive":
            propensity = neyman_propensity(self.predict(state, covariates)[1], self.clip)
        else:
            _, _, log_variance, spread = self._moments(state, covariates)
            ratio = log_variance[..., 1] - log_variance[..., 0]
            if self.rule == "posterior":
                ratio = ratio.unsqueeze(-1) + spread.sum(-1, keepdim=True).sqrt() * self.nodes
                propensity = (torch.sigmoid(0.5 * ratio) @ self.node_weights).clamp(self.clip, 1 - self.clip)
            else:
                propensity = torch.sigmoid(0.5 * ratio).clamp(self.clip, 1 - self.clip)
        return torch.where(state.units[..., -1].sum(-1) < self.burn_in, 0.5, propensity)

    def log_evidence(self, history: Tensor) -> Tensor:
        """log p(outcomes | covariates, arms) of a history (*batch, T, d + 3) under the prior, (*batch), float64, nats.

        By Laplace's method, the coefficients of the means integrated out exactly.

        Raises:
            ValueError: If the history has another width or is not finite, or arms or mask are not 0 and 1.
        """
        history = check_units(history, self.covariate_dim).double()
        scale = history[..., -1].sum(-1) * math.log(self.units.outcome_scale)
        return self.read(history).beliefs.log_evidence.sum(0) - scale

    def _fit(self, units: Tensor) -> SeriesBeliefs:
        features, arm, outcome, mask = units[..., :-3], *units[..., -3:].unbind(-1)
        weight = torch.stack([mask * (1 - arm), mask * arm])
        return fit_beliefs(features, outcome.expand_as(weight), weight, self.mean_sd, self.log_variance_sd)

    def _moments(self, state: _State, covariates: Tensor) -> list[Tensor]:
        """Posterior means and variances of f_a and of log σ_a², each (*sample, *batch, 2)."""
        features = self.units.features(covariates.double())
        per_arm = [SeriesBeliefs(*part).moments(features) for part in zip(*state.beliefs, strict=True)]
        return [torch.stack(arms, -1) for arms in zip(*per_arm, strict=True)]
