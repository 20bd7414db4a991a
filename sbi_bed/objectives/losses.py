r"""Losses whose gradient in a policy's weights is that of −(contrastive bound).

**Pathwise**, where outcomes are reparameterised: differentiate the bound through designs and outcomes.

**Score function**, where outcomes are discrete. With y drawn, not differentiated, and g_t the bound after t trials,

    ∇ E[g_T] = E[ Σ_t (g_T − c_t) ∇ log p(y_t | θ_0, ξ_t) + ∇ g_T ],

for any control variate c_t that does not depend on y_t (Foster et al. 2021, arXiv 2103.02438, eq. 12, has c_t = 0). Here
c_t = g_{t−1} + the mean over the *other* histories of g_T − g_{t−1}. Neither part depends on y_t, so the expectation stays,
and together they remove most of the variance. `baseline="none"` is the plain form, for comparison.

Where outcomes are discrete in part (`DesignSimulator.log_discrete`), only that part is scored and the rest is
differentiated: the same formula, with y attached.

Designs may be drawn in part, too: a policy in training draws categories, whole numbers and candidates. What it draws in
ξ_t is scored beside y_t, by log π(ξ_t | h_{t−1}); c_t does not depend on it either.

The bound is sPCE; with weighted contrastive samples (`LocalProposal`) it is the nested Monte Carlo bound without θ_0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..simulators.base import DesignSimulator
from ..simulators.rollout import Rollout
from .contrastive import log_likelihood_of_history, log_sum_likelihood, snmc, spce

__all__ = [
    "Baseline",
    "drawn_loss",
    "log_prob_of_drawn",
    "pathwise_loss",
    "score_function_loss",
    "score_function_surrogate",
]

Baseline = Literal["prefix", "mean", "none"]


def pathwise_loss(
    simulator: DesignSimulator,
    theta: Tensor,
    trials: Rollout,
    contrastive: Tensor,
    *,
    log_weights: Tensor | None = None,
    compile: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss −bound for reparameterised outcomes.

    Args:
        simulator: Experiment with a likelihood.
        theta: θ_0 that the trials were simulated from, (B, P).
        trials: Designs (B, T, D) and outcomes (B, T, O), attached to the policy's weights.
        contrastive: θ_1, …, θ_L, (L, P) or (L, B, P).
        log_weights: Their importance weights in logs, (L, B); None for draws of the prior.
        compile: As for `log_sum_likelihood`.

    Returns:
        The loss, a scalar, and the terms (B,) whose mean is the bound, detached.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> simulator, contrastive = LocationFinding(), torch.randn(500, 2)
        >>> theta, designs = torch.randn(64, 2), torch.zeros(2, requires_grad=True)
        >>> sensors = designs.expand(64, 3, 2)  # three readings at one point
        >>> trials = Rollout(sensors, simulator(theta.unsqueeze(1), sensors))
        >>> loss, terms = pathwise_loss(simulator, theta, trials, contrastive)
        >>> loss.backward()  # where that point had better be
        >>> designs.grad.shape, bool((terms.mean() + loss).abs() < 1e-5)
        (torch.Size([2]), True)
    """
    log_likelihood = log_likelihood_of_history(simulator, theta, *trials).sum(-1)
    log_sum = log_sum_likelihood(simulator, contrastive, *trials, log_weights, compile=compile)
    nested = spce if log_weights is None else snmc
    terms = nested(log_likelihood, log_sum, len(contrastive))
    return -terms.mean(), terms.detach()


def score_function_loss(
    simulator: DesignSimulator,
    theta: Tensor,
    trials: Rollout,
    contrastive: Tensor,
    baseline: Baseline = "prefix",
    *,
    log_weights: Tensor | None = None,
    log_choices: Tensor | None = None,
    compile: bool = False,
) -> tuple[Tensor, Tensor]:
    """Surrogate whose gradient is the score-function gradient of −bound; arguments and returns as for `pathwise_loss`.

    Args:
        baseline: Control variate: "prefix" as above; "mean", the others' mean of g_T alone; "none".
        log_choices: Log-probabilities (B, T) of what was drawn in the designs, attached to the policy; None for nothing.

    Example:
        >>> from sbi_bed.policies import DeepSetsPolicy
        >>> from sbi_bed.simulators import HyperbolicDiscounting, rollout
        >>> simulator = HyperbolicDiscounting()  # whose outcomes are choices
        >>> theta, contrastive = simulator.prior.sample((16,)), simulator.prior.sample((100,))
        >>> trials = rollout(simulator, DeepSetsPolicy(simulator), theta, 4)
        >>> _, terms = score_function_loss(simulator, theta, trials, contrastive)
        >>> bool(torch.allclose(terms, pathwise_loss(simulator, theta, trials, contrastive)[1], atol=1e-4))  # one bound
        True
    """
    by_trial = log_likelihood_of_history(simulator, theta, *trials)
    scored = log_prob_of_drawn(simulator, theta, trials, by_trial)
    scored = scored if log_choices is None else scored + log_choices
    log_sums = log_sum_likelihood(simulator, contrastive, *trials, log_weights, every_trial=True, compile=compile)
    nested = spce if log_weights is None else snmc
    bounds = nested(by_trial.cumsum(-1), log_sums.transpose(0, 1), len(contrastive))
    return score_function_surrogate(bounds, scored, baseline), bounds[:, -1].detach()


def log_prob_of_drawn(
    simulator: DesignSimulator, theta: Tensor, trials: Rollout, log_likelihood: Tensor | None = None
) -> Tensor:
    """log p(y_t | θ_0, ξ_t) of what is drawn and not differentiated, (B, T), attached to the designs.

    Of detached outcomes that is all, of attached ones the part that is discrete.

    Args:
        simulator: Experiment with a likelihood.
        theta: θ_0 that the trials were simulated from, (B, P).
        trials: Designs (B, T, D) and outcomes (B, T, O).
        log_likelihood: log p(y_t | θ_0, ξ_t), (B, T), where it is at hand.
    """
    if trials.outcomes.requires_grad:
        if simulator.pathwise:
            return torch.zeros_like(trials.outcomes[..., 0])
        return simulator.log_discrete(theta.unsqueeze(-2), trials.designs, trials.outcomes.detach())
    return log_likelihood_of_history(simulator, theta, *trials) if log_likelihood is None else log_likelihood


def score_function_surrogate(bounds: Tensor, scored: Tensor, baseline: Baseline) -> Tensor:
    """Scalar whose gradient is the score-function gradient of −E[g_T].

    Args:
        bounds: g_t after each trial, (B, T), attached.
        scored: log p(y_t | θ_0, ξ_t) of what is drawn and not differentiated, (B, T), attached.
        baseline: As for `score_function_loss`.
    """
    gain, known = bounds[:, -1:].detach(), torch.nn.functional.pad(bounds[:, :-1].detach(), (1, 0))
    if baseline == "none":
        weight = gain
    else:
        advantage = gain - known if baseline == "prefix" else gain.expand_as(known)
        others = (advantage.sum(0) - advantage) / max(1, len(advantage) - 1)
        weight = advantage - others
    return -((weight * scored).sum(-1).mean() + bounds[:, -1].mean())


def drawn_loss(terms: Tensor, log_probs: Tensor) -> Tensor:
    """Surrogate (scalar) for the gradient of −mean(terms) through what was drawn, with the others' mean as control variate.

    Args:
        terms: Terms (B,), detached.
        log_probs: Log-probabilities (B, T) of what was drawn, attached to the policy.
    """
    others = (terms.sum() - terms) / max(1, len(terms) - 1)
    return -((terms - others) * log_probs.sum(-1)).mean()
