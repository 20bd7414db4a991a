r"""The Neyman propensity under Bayesian nonparametric beliefs: the teacher that experimenter nets imitate.

Beliefs about f_a and log σ_a² are series with a normal prior of known smoothness (`series_beliefs`), updated by the units so
far. From the posterior log σ_a²(x) ~ N(μ_a, s_a²), f_a(x) ~ N(m_a, c_a²), the propensity is one of

- "predictive": √v_1 / (√v_1 + √v_0) with v_a = exp(μ_a + s_a²/2) + c_a², which minimises the expected variance of the next
  term of the estimate;
- "posterior": the posterior mean of σ_1 / (σ_1 + σ_0), by Gauss-Hermite quadrature over log σ_1² − log σ_0²;
- "plug-in": the Neyman propensity at the posterior means of log σ_a².

With K > 2 arms, arm 0 the control, "predictive" and "plug-in" give the shares that minimise the sum of the variances of the
K − 1 effects against the control, π_0 ∝ √(K − 1) √v_0 and π_a ∝ √v_a (`simulators/treatment/arms.py`).

Binary outcomes have logistic series instead (`binary_beliefs`), v_a = p_a (1 − p_a) and the "predictive" rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...simulators.treatment.arms import arm_indicators
from ...utils.checks import check_choice, check_count, check_positive
from .arm_moments import ArmMoments
from .base import TreatmentPolicy, check_units, neyman_propensity
from .binary_beliefs import BinaryBeliefs, fit_binary_beliefs
from .series_beliefs import SeriesBeliefs, fit_beliefs, prior_beliefs
from .unit_features import OutcomeUnit, UnitFeatures, two_values

__all__ = ["NeymanTeacher"]


class _Binary(NamedTuple):
    holds: Tensor  # whether outcomes are binary, (*batch)
    unit: OutcomeUnit  # of outcomes that are 0 or 1 in standard units
    beliefs: BinaryBeliefs  # of all arms, (K, *batch)

    def predict(self, features: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Predictive mean and log variance of each arm, each (*sample, *batch), in standard units."""
        return [BinaryBeliefs(*part).predict(features) for part in zip(*self.beliefs, strict=True)]


class _Beliefs(NamedTuple):
    unit: OutcomeUnit  # in which series have a prior of scale 1
    series: SeriesBeliefs  # of all arms, (K, *batch)
    binary: _Binary | None  # where some outcomes of the batch are binary


class _State(NamedTuple):
    units: Tensor  # features, arm, outcome, mask, (*batch, n, m + 3)
    moments: ArmMoments
    beliefs: _Beliefs
    num_fitted: int


class NeymanTeacher(TreatmentPolicy):
    """Assigns by the Neyman rule under Bayesian beliefs. It has no weights to train, and computes in float64.

    Args:
        covariate_dim: Number d of covariates, 0 or more.
        smoothness: α of the prior.
        clip: Smallest probability of any arm.
        burn_in: Number of first units that a fair coin assigns.
        refit_every: Live, beliefs are updated each time this number of outcomes has come, at a cost of O(t). A history that
            is given at once is always read to its end.
        rule: "predictive", "posterior" (of two arms only) or "plug-in", see above.
        num_functions: Functions in a series; see `UnitFeatures`.
        mean_scale: Prior sd of f_a(x), in units of `outcome_scale`.
        log_variance_scale: Prior sd of log σ_a²(x).
        covariate_low: Covariates lie roughly between these, a number or one for each; for standard normal ones take
            ∓1.73. Beyond them series are mirrored, and random features go on.
        covariate_high: See `covariate_low`.
        outcome_centre: Location of outcomes. If None, the mean of the outcomes so far.
        outcome_scale: Scale of outcomes. If None, the standard deviation within arms of the outcomes so far. Propensities
            then do not depend on the unit of outcomes.
        outcome_space: "binary" for outcomes 0 and 1, "real" for others. If None, outcomes are binary while they take
            exactly two values.
        logit_scale: Prior sd of the logit of P(Y = 1 | x), for binary outcomes.
        num_arms: Number K of arms, arm 0 the control.

    Covariates up to three have tensor products of cosines, more have linear functions and random features.

    Attributes:
        units: Features of a unit.
        mean_sd: Prior sds of the coefficients of f_a, (m,).
        log_variance_sd: Prior sds of the coefficients of log σ_a², (m,).
        logit_sd: Prior sds of the coefficients of logits, for binary outcomes, (m,).
        nodes: Gauss–Hermite nodes of the integral over beliefs about a log-variance, (12,).
        node_weights: Their weights, (12,).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> teacher = NeymanTeacher(covariate_dim=1, smoothness=1.5)
        >>> history = torch.zeros(4, 30, 4)  # four experiments of no unit yet, padded
        >>> teacher(history, torch.rand(4, 1))
        tensor([0.5000, 0.5000, 0.5000, 0.5000], dtype=torch.float64)
        >>> NeymanTeacher(covariate_dim=1, num_arms=4)(history, torch.rand(4, 1))[0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)
    """

    reads_mixed_masks = True
    mean_sd: Tensor
    log_variance_sd: Tensor
    logit_sd: Tensor
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
        outcome_centre: float | None = None,
        outcome_scale: float | None = None,
        outcome_space: Literal["real", "binary"] | None = None,
        logit_scale: float = 1.5,
        num_arms: int = 2,
    ):
        unit: dict[str, Any] = {"num_functions": num_functions, "outcome_centre": outcome_centre}
        unit |= {"outcome_scale": outcome_scale, "covariate_low": covariate_low, "covariate_high": covariate_high}
        scales = {"mean_scale": mean_scale, "log_variance_scale": log_variance_scale}
        rules = {"burn_in": burn_in, "refit_every": refit_every, "rule": rule, "smoothness": smoothness}
        binary = {"outcome_space": outcome_space, "logit_scale": logit_scale}
        super().__init__(covariate_dim, clip, **rules, **scales, **binary, **unit, num_arms=num_arms)
        self.smoothness = check_positive(smoothness, "smoothness")
        self.burn_in, self.refit_every = check_count(burn_in, "burn_in", 0), check_count(refit_every, "refit_every")
        self.rule = check_choice(rule, "rule", ("predictive", "posterior", "plug-in"))
        if rule == "posterior" and num_arms > 2:
            raise ValueError(f"rule 'posterior' is for two arms, there are {num_arms}: take 'predictive' or 'plug-in'.")
        self.outcome_space = check_choice(outcome_space, "outcome_space", ("real", "binary", None))
        self.needs_outcomes = outcome_centre is None
        self.units = UnitFeatures(covariate_dim, self.smoothness, **unit)
        mean_sd, log_variance_sd = self.units.prior_sds(self.smoothness, **scales)
        self.register_buffer("mean_sd", mean_sd, persistent=False)
        self.register_buffer("log_variance_sd", log_variance_sd, persistent=False)
        logit_sd = self.units.basis.sd(self.smoothness, check_positive(logit_scale, "logit_scale"))
        self.register_buffer("logit_sd", logit_sd, persistent=False)
        nodes, weights = np.polynomial.hermite_e.hermegauss(12)
        self.register_buffer("nodes", torch.from_numpy(nodes), persistent=False)
        self.register_buffer("node_weights", torch.from_numpy(weights / weights.sum()), persistent=False)

    # ---- states

    def initial_state(self, batch_shape: Sequence[int] = ()) -> _State:
        """Prior beliefs."""
        shape = tuple(batch_shape)
        units = self.mean_sd.new_zeros(*shape, 0, len(self.units) + 3)
        unit = self.units.outcome_unit(*units[..., -3:].unbind(-1), num_arms=self.num_arms)
        beliefs = prior_beliefs(self.mean_sd, self.log_variance_sd, (self.num_arms, *shape))
        return _State(units, ArmMoments.none(shape, self.num_arms), _Beliefs(unit, beliefs, None), 0)

    def update(self, state: _State, covariates: Tensor, arm: Tensor, outcome: Tensor) -> _State:
        """Beliefs after one more unit, if it is time to refit."""
        unit = self.units.encode_unit(covariates, arm, outcome)
        units, moments = torch.cat([state.units, unit], -2), state.moments.with_unit(arm, outcome)
        if units.shape[-2] - state.num_fitted < self.refit_every:
            return _State(units, moments, state.beliefs, state.num_fitted)
        return _State(units, moments, self._fit(units), units.shape[-2])

    def read(self, history: Tensor) -> _State:
        """Beliefs from all observed units of a history (*batch, T, d + 3)."""
        units = self.units.encode(history)
        if units.shape[-2] == 0:
            return self.initial_state(units.shape[:-2])
        moments = ArmMoments.of(*units[..., -3:].unbind(-1), num_arms=self.num_arms)
        return _State(units, moments, self._fit(units), units.shape[-2])

    # ---- what follows from beliefs

    def predict(self, state: _State, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Predictive mean and log variance, with the uncertainty about both; see `TreatmentPolicy`.

        While outcomes do not vary, or before the first fit, these are the arms' means and variances so far.
        """
        mean, mean_variance, log_variance, spread = self._moments(state, covariates)
        total = torch.logaddexp(log_variance + 0.5 * spread, mean_variance.log())
        beliefs = state.beliefs
        mean, total = beliefs.unit._replace(moments=state.moments).rescale(mean, total)
        if beliefs.binary is None:
            return mean, total
        features = self.units.features(covariates.double())
        share, log_noise = (torch.stack(arms, -1) for arms in zip(*beliefs.binary.predict(features), strict=True))
        share, log_noise = beliefs.binary.unit.rescale(share, log_noise)
        which = beliefs.binary.holds.unsqueeze(-1)
        return torch.where(which, share, mean), torch.where(which, log_noise, total)

    def propensity(self, state: _State, covariates: Tensor) -> Tensor:
        """Probability of arm 1, or of each of K > 2 arms, by the rule; 1 / K in the burn-in and before the first fit."""
        propensity = neyman_propensity(self.predict(state, covariates)[1], self.clip)
        if self.rule != "predictive":
            _, _, log_variance, spread = self._moments(state, covariates)
            if self.rule == "posterior":
                ratio = (log_variance[..., 1] - log_variance[..., 0]).unsqueeze(-1)
                ratio = ratio + spread.sum(-1, keepdim=True).sqrt() * self.nodes
                by_rule = (torch.sigmoid(0.5 * ratio) @ self.node_weights).clamp(self.clip, 1 - self.clip)
            else:
                by_rule = neyman_propensity(log_variance, self.clip)
            binary = state.beliefs.binary
            propensity = by_rule if binary is None else torch.where(self._by_arm(binary.holds), propensity, by_rule)
        too_early = state.units[..., -1].sum(-1) < (self.burn_in if state.num_fitted else math.inf)
        return torch.where(self._by_arm(too_early), 1 / self.num_arms, propensity)

    def log_evidence(self, history: Tensor) -> Tensor:
        """log p(outcomes | covariates, arms) of a history (*batch, T, d + 3) under the prior, (*batch), float64, nats.

        By Laplace's method; coefficients of means are integrated out exactly. The prior has the location and scale of
        outcomes that were given, or those of the history.

        Raises:
            ValueError: If the history has another width or is not finite, or there is no such arm, or a mask is not 0 or 1.
        """
        history = check_units(history, self.covariate_dim, self.num_arms).double()
        beliefs = self.read(history).beliefs
        evidence = beliefs.series.log_evidence.sum(0) - history[..., -1].sum(-1) * beliefs.unit.scale.log()
        if beliefs.binary is None:
            return evidence
        return torch.where(beliefs.binary.holds, beliefs.binary.beliefs.log_evidence.sum(0), evidence)

    def _by_arm(self, value: Tensor) -> Tensor:
        """Values (*batch) as they broadcast with propensities."""
        return value if self.num_arms == 2 else value.unsqueeze(-1)

    def _fit(self, units: Tensor) -> _Beliefs:
        features, arm, outcome, mask = units[..., :-3], *units[..., -3:].unbind(-1)
        weight = mask * arm_indicators(arm, self.num_arms).movedim(-1, 0)
        unit = self.units.outcome_unit(arm, outcome, mask, num_arms=self.num_arms)
        standard = (unit.standardise(outcome) * mask).expand_as(weight)
        series = fit_beliefs(features, standard, weight, self.mean_sd, self.log_variance_sd)
        return _Beliefs(unit, series, self._fit_binary(features, outcome, mask, weight))

    def _fit_binary(self, features: Tensor, outcome: Tensor, mask: Tensor, weight: Tensor) -> _Binary | None:
        """Beliefs about binary outcomes, where outcomes are binary."""
        seen = mask > 0
        if self.outcome_space == "binary":
            wrong = seen & (outcome != 0) & (outcome != 1)
            if wrong.any():
                raise ValueError(f"binary outcomes are 0 or 1, got {float(outcome[wrong][0]):g}.")
            low, high = torch.zeros_like(mask[..., 0]), torch.ones_like(mask[..., 0])
            holds = torch.ones_like(low, dtype=torch.bool)
        else:
            low, high, holds = two_values(outcome, seen)
            if self.outcome_space == "real" or not bool(holds.any()):
                return None
        ones = (outcome == high.unsqueeze(-1)).double().expand_as(weight)
        return _Binary(
            holds,
            OutcomeUnit(low, high - low, holds, ArmMoments.none(low.shape, self.num_arms), low, high, holds),
            fit_binary_beliefs(features, ones, weight, self.logit_sd),
        )

    def _moments(self, state: _State, covariates: Tensor) -> list[Tensor]:
        """Posterior means and variances of f_a and of log σ_a², each (*sample, *batch, K), in standard units."""
        features = self.units.features(covariates.double())
        per_arm = [SeriesBeliefs(*part).moments(features) for part in zip(*state.beliefs.series, strict=True)]
        return [torch.stack(arms, -1) for arms in zip(*per_arm, strict=True)]
