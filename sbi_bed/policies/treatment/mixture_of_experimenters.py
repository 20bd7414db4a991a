r"""A mixture of experts for different smoothness, weighted by their predictions: a hierarchical posterior over experts.

Expert k predicts the outcome of unit t, from the units before, as N(m_k, v_k) in the arm it was assigned. With prior
weights π_k the weight of an expert at unit t is

    w_k ∝ π_k Π_{s < t} N(Y_s; m_k,s, v_k,s),

If the experts predict by Bayes' rule, this is the posterior probability of the expert's class, because the product of
one-step predictions is the evidence.
The mixture assigns with probability Σ_k w_k e_k(x) and predicts with the moments of the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...simulators.base import DesignSimulator
from ...utils.checks import as_finite_tensor
from ..base import policy_class_called
from .base import StreamPredictions, TreatmentPolicy

__all__ = ["MixtureOfExperimenters", "log_score"]


class _State(NamedTuple):
    experts: tuple[Any, ...]
    log_weights: Tensor  # not normalised, (*batch, K), float64
    asked: list[tuple[Tensor, list[StreamPredictions]]]  # the last covariates asked about, and the experts' answers


class MixtureOfExperimenters(TreatmentPolicy):
    """Assigns by the mean propensity of several experts, weighted by their predictive log-scores so far.

    Args:
        experts: Policies that predict outcomes, `NeymanTeacher` or trained nets, one for each class of smoothness.
        log_prior: Log prior weights (K,), not necessarily normalised; equal weights if None.

    Raises:
        TypeError: If an expert is no `TreatmentPolicy`, or predicts nothing.
        ValueError: If there is none, they have different covariates or arms, or weights do not fit.

    Example:
        >>> from sbi_bed.policies import NeymanTeacher
        >>> mixture = MixtureOfExperimenters([NeymanTeacher(1, smoothness=alpha) for alpha in (0.5, 1.5, 4.0)])
        >>> mixture.gate(mixture.initial_state((2,))).shape
        torch.Size([2, 3])
    """

    log_prior: Tensor

    def __init__(self, experts: Sequence[TreatmentPolicy], log_prior: Tensor | Sequence[float] | None = None):
        experts = list(experts)
        if not experts:
            raise ValueError("a mixture needs at least one expert.")
        for expert in experts:
            if not (isinstance(expert, TreatmentPolicy) and expert.has_predictions):
                raise TypeError(f"experts must be TreatmentPolicies that predict outcomes, got {expert!r}.")
        dims = [expert.covariate_dim for expert in experts]
        if len(set(dims)) > 1:
            raise ValueError(f"experts must have the same covariates, got {dims} of them.")
        arms = [expert.num_arms for expert in experts]
        if len(set(arms)) > 1:
            raise ValueError(f"experts must have the same arms, got {arms} of them.")
        prior = torch.zeros(len(experts)) if log_prior is None else as_finite_tensor(log_prior, "log_prior")
        if prior.shape != (len(experts),):
            raise ValueError(f"log_prior must have {len(experts)} values, one an expert, got {tuple(prior.shape)}.")
        super().__init__(dims[0], clip=min(expert.clip for expert in experts))
        self.num_arms = arms[0]
        self.config = {"experts": [{"policy": type(e).__name__, "config": e.config} for e in experts]}
        self.needs_outcomes = any(expert.needs_outcomes for expert in experts)
        self.experts = nn.ModuleList(experts)
        self.register_buffer("log_prior", prior.double().log_softmax(-1))

    @classmethod
    def rebuild(cls, config: dict[str, Any], simulator: DesignSimulator | None) -> MixtureOfExperimenters:
        """A mixture of experts of the same kinds."""
        parts = [(policy_class_called(part["policy"]), part["config"]) for part in config["experts"]]
        return cls([kind.rebuild(plain, simulator) for kind, plain in parts])  # pyright: ignore[reportArgumentType]

    def initial_state(self, batch_shape: Sequence[int] = ()) -> _State:
        """Prior weights."""
        states = tuple(expert.initial_state(batch_shape) for expert in self._each())
        return _State(states, self.log_prior.expand(*batch_shape, -1), [])

    def update(self, state: _State, covariates: Tensor, arm: Tensor, outcome: Tensor) -> _State:
        """Score each expert's prediction of one more unit, then let it learn."""
        scores = [log_score(e.mean, e.log_variance, arm, outcome) for e in self._answers(state, covariates)]
        pairs = zip(self._each(), state.experts, strict=True)
        states = tuple(expert.update(s, covariates, arm, outcome) for expert, s in pairs)
        return _State(states, state.log_weights + _relative(scores), [])

    def gate(self, state: _State) -> Tensor:
        """Weight of each expert, (*batch, K), float64."""
        return state.log_weights.softmax(-1)

    def predict(self, state: _State, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the mixture; see `TreatmentPolicy`."""
        both = [(e.mean, e.log_variance) for e in self._answers(state, covariates)]
        return _mixture_moments(both, state.log_weights.log_softmax(-1))

    def propensity(self, state: _State, covariates: Tensor) -> Tensor:
        """Weighted mean of the experts' propensities, (*sample, *batch) or (*sample, *batch, K)."""
        return self._mean_propensity(self._answers(state, covariates), self.gate(state))

    def along(self, history: Tensor, places: Tensor | None = None) -> StreamPredictions:
        """All units, or those at some places; see `TreatmentPolicy`."""
        each = [expert.along(history) for expert in self._each()]
        log_weights = self._log_weights(history, each)[..., :-1, :].log_softmax(-1)
        propensity = self._mean_propensity(each, log_weights.exp())
        moments = _mixture_moments([(e.mean, e.log_variance) for e in each], log_weights)
        if places is None:
            return StreamPredictions(propensity, *moments)
        parts = (part.index_select(history.ndim - 2, places) for part in (propensity, *moments))
        return StreamPredictions(*parts)

    def read(self, history: Tensor) -> _State:
        """State after a history (*batch, T, d + 3) whose mask is the same in the whole batch."""
        if history.shape[-2] == 0:
            return self.initial_state(history.shape[:-2])
        log_weights = self._log_weights(history, [expert.along(history) for expert in self._each()])
        return _State(tuple(expert.read(history) for expert in self._each()), log_weights[..., -1, :], [])

    def _mean_propensity(self, each: Sequence[StreamPredictions], weights: Tensor) -> Tensor:
        """Mean propensity under weights (..., E) of the E experts."""
        weights = weights if self.num_arms == 2 else weights.unsqueeze(-2)
        return (torch.stack([e.propensity for e in each], -1) * weights).sum(-1)

    def _log_weights(self, history: Tensor, each: Sequence[StreamPredictions]) -> Tensor:
        """Weights before each unit and after the last, (*batch, T + 1, K), not normalised."""
        arm, outcome, mask = history[..., -3:].unbind(-1)
        scores = _relative([log_score(e.mean, e.log_variance, arm, outcome) for e in each])
        total = (scores * mask.double().unsqueeze(-1)).cumsum(-2)
        return self.log_prior + torch.cat([torch.zeros_like(total[..., :1, :]), total], -2)

    def _answers(self, state: _State, covariates: Tensor) -> list[StreamPredictions]:
        """What each expert says. A live unit is asked about up to three times: to assign, to predict, and to score."""
        if state.asked and torch.equal(state.asked[0][0], covariates):
            return state.asked[0][1]
        answers = [expert.assess(s, covariates) for expert, s in zip(self._each(), state.experts, strict=True)]
        if not torch.is_grad_enabled():
            state.asked[:] = [(covariates.clone(), answers)]
        return answers

    def _each(self) -> list[TreatmentPolicy]:
        return list(self.experts)  # pyright: ignore[reportReturnType]


def log_score(mean: Tensor | None, log_variance: Tensor | None, arm: Tensor, outcome: Tensor) -> Tensor:
    """log N(outcome; mean, variance) in the arm that was assigned, (...), float64, nats, for predictions (..., 2)."""
    if mean is None or log_variance is None:
        raise ValueError("without predictions there is nothing to score.")
    which = arm.long().unsqueeze(-1)
    mean, log_variance = (part.double().gather(-1, which).squeeze(-1) for part in (mean, log_variance))
    squares = (outcome.double() - mean).square() * (-log_variance).exp()
    return -0.5 * (math.log(2 * math.pi) + log_variance + squares)


def _relative(scores: Sequence[Tensor]) -> Tensor:
    """Scores (..., K) less the best one: the weights are the same, and large scores do not drown differences."""
    stacked = torch.stack(list(scores), -1)
    return stacked - stacked.amax(-1, keepdim=True)


def _mixture_moments(
    moments: Sequence[tuple[Tensor | None, Tensor | None]], log_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and log variance (..., 2) of a mixture of normals with log weights (..., K)."""
    means, log_variances = (torch.stack(part, -1).double() for part in zip(*moments, strict=True))  # pyright: ignore
    weights = log_weights.exp().unsqueeze(-2)
    mean = (means * weights).sum(-1)
    second = (log_variances.exp() + (means - mean.unsqueeze(-1)).square()) * weights
    return mean, second.sum(-1).log()
