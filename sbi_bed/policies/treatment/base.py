r"""Policies that assign treatments: covariates of the next unit and the units before it -> probability of treatment.

A unit t has covariates X_t, an arm A_t ∈ {0, 1} drawn with probability e_t for arm 1, and an outcome Y_t. The average
treatment effect is estimated best if units are assigned by the Neyman rule e(x) = σ_1(x) / (σ_1(x) + σ_0(x)). With K > 2
arms, arm 0 the control, a propensity is the probability of each arm, (..., K), and the rule is that of
`simulators/treatment/arms.py`. A policy learns the variances from the units before. It never sees the unit that it assigns,
so its predictions can serve as nuisances of an augmented inverse-probability-weighted estimate.

Histories are tensors (..., T, d + 3): covariates (d), arm, outcome, and a mask that is 1 where the outcome was observed
and 0 elsewhere (padding, or an outcome still to come), anywhere in the history.

Where a policy predicts outcomes with mean m_a(x) and variance v_a(x), given the units before, its propensity is
√v_1 / (√v_1 + √v_0). It minimises v_1 / e + v_0 / (1 − e). Up to a constant this is the expected variance of the next term
of that estimate, with the uncertainty about means and variances included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...simulators.base import DesignSimulator
from ...simulators.treatment.arms import arm_indicators, clip_shares, weighted_sds
from ...utils.checks import as_finite_tensor, check_count
from ..base import SavedPolicy

__all__ = ["StreamPredictions", "TreatmentPolicy", "check_units", "neyman_propensity"]


class StreamPredictions(NamedTuple):
    """A policy's propensities and predictions for units before they are assigned.

    Attributes:
        propensity: Probability of arm 1, (...); with K > 2 arms of each arm, (..., K).
        mean: Predicted outcome in each arm, (..., K); None if the policy predicts none.
        log_variance: Logarithm of the predictive variance in each arm, (..., K), or None.
    """

    propensity: Tensor
    mean: Tensor | None
    log_variance: Tensor | None


class TreatmentPolicy(SavedPolicy):
    """Base of policies that assign treatments: subclasses give `initial_state`, `update` and `predict` or `propensity`.

    Args:
        covariate_dim: Number d of covariates, 0 or more.
        clip: Smallest probability of any arm.
        **config: The other arguments the policy was built with, plain data, from which `load_policy` builds it again;
            `num_arms` if there may be more than two arms.

    Attributes:
        num_arms: Number K of arms, arm 0 the control.
        has_predictions: Whether the policy predicts outcomes.
        reads_mixed_masks: Whether `read` takes histories whose masks differ within the batch.
        needs_outcomes: Whether predictions before the first outcome mean nothing, because the location of outcomes is
            learnt from them. Estimates do not rest on such predictions.
        config: All arguments but weights, as plain data.

    Raises:
        ValueError: If clip is not between 0 and one over the number of arms.

    Example:
        A policy that tosses a coin::

            class Coin(TreatmentPolicy):
                has_predictions = False

                def initial_state(self, batch_shape=()):
                    return torch.zeros(tuple(batch_shape))

                def update(self, state, covariates, arm, outcome):
                    return state

                def propensity(self, state, covariates):
                    return torch.full(covariates.shape[:-1], 0.5)
    """

    has_predictions = True
    reads_mixed_masks = False
    needs_outcomes = False

    def __init__(self, covariate_dim: int, clip: float = 0.05, **config: Any):
        super().__init__(covariate_dim=covariate_dim, clip=clip, **config)
        self.covariate_dim = check_count(covariate_dim, "covariate_dim", 0)
        self.num_arms = check_count(config.get("num_arms", 2), "num_arms", 2)
        if not 0 < clip < 1 / self.num_arms:
            raise ValueError(
                f"clip must lie between 0 and 1/{self.num_arms}: no arm's probability is below it; got {clip}."
            )
        self.clip = float(clip)

    @classmethod
    def rebuild(cls, config: dict[str, Any], simulator: DesignSimulator | None) -> TreatmentPolicy:
        """A policy with new weights; it needs no simulator."""
        return cls(**config)

    def initial_state(self, batch_shape: Sequence[int] = ()) -> Any:
        """State before the first unit, for a batch of experiments."""
        raise NotImplementedError

    def update(self, state: Any, covariates: Tensor, arm: Tensor, outcome: Tensor) -> Any:
        """State after one more unit: covariates (*batch, d), arm (*batch), outcome (*batch); `state` itself stays."""
        raise NotImplementedError

    def predict(self, state: Any, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Predictive mean and log variance of the outcome in each arm, from the units before.

        Args:
            state: State of a batch of experiments.
            covariates: Shape (*sample, *batch, d).

        Returns:
            Means and log variances, both (*sample, *batch, K), arm 0 first.

        Raises:
            NotImplementedError: If the policy predicts no outcomes (`has_predictions` is False).
        """
        raise NotImplementedError(f"{type(self).__name__} predicts no outcomes: its has_predictions is False.")

    def propensity(self, state: Any, covariates: Tensor) -> Tensor:
        """Probability of arm 1, (*sample, *batch), or of each, (*sample, *batch, K), for covariates (*sample, *batch, d)."""
        return neyman_propensity(self.predict(state, covariates)[1], self.clip)

    def assess(self, state: Any, covariates: Tensor) -> StreamPredictions:
        """Propensity and predictions at once, for covariates (*sample, *batch, d)."""
        if not self.has_predictions:
            return StreamPredictions(self.propensity(state, covariates), None, None)
        mean, log_variance = self.predict(state, covariates)
        if type(self).propensity is TreatmentPolicy.propensity:  # which would predict once more
            return StreamPredictions(neyman_propensity(log_variance, self.clip), mean, log_variance)
        return StreamPredictions(self.propensity(state, covariates), mean, log_variance)

    def read(self, history: Tensor) -> Any:
        """State after a history (*batch, T, d + 3); its mask is the same in the whole batch, unless `reads_mixed_masks`."""
        state = self.initial_state(history.shape[:-2])
        for unit in history.unbind(-2):
            if bool((unit[..., -1] > 0).any()):
                state = self.update(state, unit[..., :-3], unit[..., -3], unit[..., -2])
        return state

    def forward(self, history: Tensor, covariates: Tensor) -> Tensor:
        """Probability of arm 1, (*batch), or of each of K > 2 arms, (*batch, K), for the next unit.

        Args:
            history: Units before, (*batch, T, d + 3); the mask may differ within the batch.
            covariates: Of the next unit, (*batch, d).

        Raises:
            ValueError: If a tensor has another width or is not finite, or there is no such arm, or a mask is not 0 or 1.
        """
        history = check_units(history, self.covariate_dim, self.num_arms)
        covariates = as_finite_tensor(covariates, "covariates", self.covariate_dim).to(history)
        if covariates.shape[:-1] != history.shape[:-2]:
            raise ValueError(
                f"covariates (*batch, d) and history (*batch, T, d + 3) must be of one batch, "
                f"got {tuple(covariates.shape)} and {tuple(history.shape)}."
            )
        if self.reads_mixed_masks or not _masks_differ(history):
            return self.propensity(self.read(history), covariates)
        rows = history.reshape(-1, *history.shape[-2:]), covariates.reshape(-1, self.covariate_dim)
        propensities = [self.propensity(self.read(row), x) for row, x in zip(*rows, strict=True)]
        return torch.stack(propensities).unflatten(0, history.shape[:-2])

    def along(self, history: Tensor, places: Tensor | None = None) -> StreamPredictions:
        """Propensity and predictions for units of a history, each from the units before it.

        Args:
            history: Shape (*batch, T, d + 3).
            places: Which units, (S,) in any order; all T if None.
        """
        if _masks_differ(history):
            rows = [self.along(row, places) for row in history.reshape(-1, *history.shape[-2:])]
            stacked = [part[0] if part[0] is None else torch.stack(part) for part in zip(*rows, strict=True)]
            shape = history.shape[:-2]
            return StreamPredictions(*(p if p is None else p.unflatten(0, shape) for p in stacked))  # pyright: ignore
        wanted = set(range(history.shape[-2]) if places is None else places.tolist())
        state, found = self.initial_state(history.shape[:-2]), {}
        for t, unit in enumerate(history.unbind(-2)):
            covariates = unit[..., :-3]
            if t in wanted:
                found[t] = self.assess(state, covariates)
            if bool((unit[..., -1] > 0).any()):
                state = self.update(state, covariates, unit[..., -3], unit[..., -2])
        order = sorted(found) if places is None else places.tolist()
        propensity, mean, log_variance = zip(*(found[t] for t in order), strict=True)
        stacked = torch.stack(propensity, history.ndim - 2)
        if not self.has_predictions:
            return StreamPredictions(stacked, None, None)
        return StreamPredictions(stacked, torch.stack(mean, -2), torch.stack(log_variance, -2))


def _masks_differ(history: Tensor) -> bool:
    mask = history[..., -1].unsqueeze(0).flatten(0, -2)
    return len(mask) > 1 and not bool((mask == mask[:1]).all())


def neyman_propensity(log_variance: Tensor, clip: float) -> Tensor:
    """√v_1 / (√v_1 + √v_0), (...), for log variances (..., 2); the best shares, (..., K), for (..., K); at least `clip`."""
    if log_variance.shape[-1] > 2:
        weighted = weighted_sds((0.5 * (log_variance - log_variance.amax(-1, keepdim=True))).exp())
        return clip_shares(weighted / weighted.sum(-1, keepdim=True), clip)
    return torch.sigmoid(0.5 * (log_variance[..., 1] - log_variance[..., 0])).clamp(clip, 1 - clip)


def check_units(history: Tensor, covariate_dim: int, num_arms: int = 2) -> Tensor:
    """Return a history (..., T, d + 3) if it is one: finite, arms 0 … K − 1, mask 0 or 1.

    Raises:
        ValueError: If it is not.
    """
    history = as_finite_tensor(history, "history", covariate_dim + 3)
    if history.ndim < 2:
        raise ValueError(f"history must have shape (..., units, d + 3), got {tuple(history.shape)}.")
    for channel, name, num in ((-1, "mask", 2), (-3, "arm", num_arms)):
        wrong = arm_indicators(history[..., channel], num).sum(-1) == 0
        if wrong.any():
            index, allowed = tuple(wrong.nonzero()[0].tolist()), " or ".join(map(str, range(num)))
            raise ValueError(f"the {name} of a unit must be {allowed}, got {history[..., channel][index]} at {index}.")
    return history
