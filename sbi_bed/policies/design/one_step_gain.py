r"""What one more trial would tell, for particles θ_n with weights w_n: the criteria of one-step-lookahead design.

**Information about θ** (Lindley 1956; MacKay 1992; "BALD", Houlsby et al. 2011, arXiv 1112.5745). With finitely many
outcomes k and p_kn = p(y = k | θ_n, ξ), exactly

    I(y; θ | ξ) = H(Σ_n w_n p_·n) − Σ_n w_n H(p_·n),   H(q) = −Σ_k q_k log q_k.

With infinitely many, for outcomes y_m simulated from θ_m, m = 1..M, among N equally weighted particles,

    1/M Σ_m [ log p(y_m | θ_m, ξ) − log 1/N Σ_n p(y_m | θ_n, ξ) ],

whose expectation is a lower bound, since θ_m is one of the θ_n (sPCE of one step, Foster et al. 2020, arXiv
1911.00294).

**Information about a target z** that the particles give probabilities p(z | θ_n), exactly from the joint probabilities
Σ_n w_n p(y | θ_n, ξ) p(z | θ_n), or, for outcomes and targets simulated from θ_m,

    1/M Σ_m [ log Σ_n p(y_m | θ_n, ξ) p(z_m | θ_n) − log Σ_n p(y_m | θ_n, ξ) − log 1/N Σ_n p(z_m | θ_n) ].

- For *predictions* ("EPIG", Bickford Smith et al. 2023, arXiv 2304.08151) z is the outcome of another trial, at a design ξ',
  and the criterion is the mean over ξ'. Parameters that no question depends on are not worth a trial.
- For *some parameters*, all others a nuisance, z is the cell in which they lie, of up to 16 cells of equal probability that
  halve their space again and again. It is a function of the parameters: for the particles that is a lower bound.

**Utility of a decision** (expected value of sample information, Raiffa and Schlaifer 1961): for utilities u_na of actions a,

    E_y[ max_a Σ_n p(θ_n | y, ξ) u_na ] − max_a Σ_n w_n u_na.

**Variance of some parameters**, all others a nuisance (Bayesian A-optimality; Chaloner & Verdinelli 1995): with the
expected posterior variance V_k(ξ) = E_y[Var(θ_k | y, ξ)] of each named parameter,

    −½ Σ_k log( V_k(ξ) / Var(θ_k) ),

a number without unit, which for jointly normal θ and y is the information about θ_k, summed over k. Var(θ_k | y) is that of
the particles, reweighted by p(y | θ_n, ξ): y is enumerated, or simulated as above.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from ...simulators.base import DesignSimulator

__all__ = [
    "OutcomeTable",
    "cells_of",
    "finite_outcomes",
    "log_likely_targets",
    "mutual_information",
    "nested_information",
    "nested_utility",
    "nested_variance_reduction",
    "predictive_information",
    "value_of_information",
    "variance_reduction",
]

_MOST_OUTCOMES = 64
_NUM_HALVINGS, _SMALLEST_CELL = 4, 32  # cells of parameters: how often they are halved, and effective particles in each
_TINY = 1e-30  # of a variance: particles that are all equal have nothing to lose


class OutcomeTable(NamedTuple):
    """What each particle says of each outcome of each design.

    Attributes:
        probability: p(y = k | θ_n, ξ_j), shape (*batch, K, J, N).
        entropy: H(p(y | θ_n, ξ_j)), shape (*batch, J, N).
    """

    probability: Tensor
    entropy: Tensor

    @classmethod
    def of(cls, simulator: DesignSimulator, theta: Tensor, designs: Tensor, outcomes: Tensor) -> OutcomeTable:
        """Tabulate theta (*batch, N, P), designs (*batch, J, D) and all outcomes (K, O); differentiable in designs."""
        log_p = simulator.log_likelihood(
            theta[..., None, None, :, :], designs[..., None, :, None, :], outcomes[:, None, None, :]
        ).clamp_min(-80.0)
        probability = log_p.exp()
        return cls(probability, -(probability * log_p).sum(-3))


def finite_outcomes(simulator: DesignSimulator) -> Tensor | None:
    """All outcomes (K, 1) of a simulator whose outcome is one boolean or one of at most 64 integers; else None."""
    space: Any = simulator.outcome_space
    while isinstance(space, constraints.independent):
        space = space.base_constraint
    if simulator.outcome_dim != 1:
        return None
    if isinstance(space, type(constraints.boolean)):
        return torch.tensor([[0.0], [1.0]])
    if isinstance(space, constraints.integer_interval):
        low, high = int(space.lower_bound), int(space.upper_bound)
        if high - low < _MOST_OUTCOMES:
            return torch.arange(low, high + 1.0).unsqueeze(-1)
    return None


def mutual_information(table: OutcomeTable, weights: Tensor) -> Tensor:
    """I(y; θ | ξ_j) in nats, shape (*batch, J), for weights (*batch, N) that sum to 1; exact for the particles."""
    marginal = _mean(table.probability.flatten(-3, -2), weights).unflatten(-1, table.probability.shape[-3:-1])
    return _entropy(marginal).sum(-2) - _mean(table.entropy, weights)


def predictive_information(table: OutcomeTable, weights: Tensor, targets: Tensor | None = None) -> Tensor:
    """Mean over targets z_i of I(y; z_i | ξ_j) in nats, shape (*batch, J), for weights (*batch, N); exact for the particles.

    Args:
        table: What the particles say of designs ξ_j.
        weights: Shape (*batch, N), with sum 1.
        targets: p(z_i = l | θ_n), (*batch, L, I, N) or (L, I, N); if None the outcomes at the table's own designs.
    """
    outcome = table.probability
    target = outcome if targets is None else targets
    num_outcomes, num_designs = outcome.shape[-3:-1]
    num_values, num_targets = target.shape[-3:-1]
    # The last outcome's probabilities follow from the margins, which saves most of the work for yes-or-no outcomes.
    kept, kept_targets = outcome[..., :-1, :, :].flatten(-3, -2), target[..., :-1, :, :].flatten(-3, -2)
    joint = (kept * weights.unsqueeze(-2)) @ kept_targets.mT
    joint = joint.unflatten(-1, (num_values - 1, num_targets)).unflatten(-3, (num_outcomes - 1, num_designs))
    margins = _mean(outcome.flatten(-3, -2), weights).unflatten(-1, (num_outcomes, num_designs))
    of_targets = _mean(target.flatten(-3, -2), weights).unflatten(-1, (num_values, num_targets))
    joint = torch.cat([joint, of_targets[..., None, None, :-1, :] - joint.sum(-4, keepdim=True)], -4)
    joint = torch.cat([joint, margins[..., None, None] - joint.sum(-2, keepdim=True)], -2)  # (*batch, K, J, L, I)
    both = _entropy(joint).sum((-4, -2)).mean(-1)
    return _entropy(margins).sum(-2) + _entropy(of_targets).sum(-2).mean(-1, keepdim=True) - both


def cells_of(values: Tensor, weights: Tensor) -> Tensor:
    """Cells of equal probability that halve the space of some parameters again and again: who lies where.

    A belief whose particles count for few has fewer cells.

    Args:
        values: Parameters of interest, (*batch, N, K); halved in turn.
        weights: Shape (*batch, N), with sum 1.

    Returns:
        Probabilities 0 or 1, (*batch, C, 1, N): the `targets` of `predictive_information`.
    """
    weights = weights.expand(values.shape[:-1])
    cell = torch.zeros(weights.shape, dtype=torch.long, device=values.device)
    effective = 1 / weights.square().sum(-1, keepdim=True)
    for halving in range(_NUM_HALVINGS):
        order = values[..., halving % values.shape[-1]].argsort(dim=-1, stable=True)
        order = order.gather(-1, cell.gather(-1, order).argsort(dim=-1, stable=True))  # by cell, then by value
        weight, own = weights.gather(-1, order), cell.gather(-1, order)
        of_cell = torch.zeros(*weights.shape[:-1], 2**halving).to(weights).scatter_add(-1, own, weight)
        before = (of_cell.cumsum(-1) - of_cell).gather(-1, own)
        upper = weight.cumsum(-1) - 0.5 * weight - before > 0.5 * of_cell.gather(-1, own)
        upper &= effective >= 2 ** (halving + 1) * _SMALLEST_CELL
        cell = torch.empty_like(cell).scatter(-1, order, 2 * own + upper)
    cells = torch.arange(2**_NUM_HALVINGS, device=values.device).unsqueeze(-1)
    return (cell.unsqueeze(-2) == cells).to(weights).unsqueeze(-2)


def value_of_information(table: OutcomeTable, weights: Tensor, utilities: Tensor) -> Tensor:
    """Expected utility that an outcome adds to a decision, (*batch, J); exact for the particles.

    Args:
        table: What the particles say of designs ξ_j.
        weights: Shape (*batch, N), with sum 1.
        utilities: Utilities of K actions, (*batch, N, K).
    """
    weighted = weights.unsqueeze(-1) * utilities
    best = (table.probability.flatten(-3, -2) @ weighted).amax(-1).unflatten(-1, table.probability.shape[-3:-1])
    return best.sum(-2) - weighted.sum(-2).amax(-1, keepdim=True)


def nested_information(
    simulator: DesignSimulator,
    theta: Tensor,
    designs: Tensor,
    num_outer: int,
    seed: int,
    log_targets: Tensor | None = None,
) -> Tensor:
    """Contrastive lower bound on I(y; θ | ξ_j) in nats, shape (*batch, J); differentiable where outcomes are.

    Args:
        simulator: Experiment with a likelihood.
        theta: Equally weighted particles in random order, (*batch, N, P).
        designs: Designs (*batch, J, D).
        num_outer: Number M of particles, the first ones, that outcomes are simulated from.
        seed: Seeds the outcomes. All designs see the same random numbers, so their differences are not lost in noise.
            The caller's generator is reseeded: call it inside `seeded`.
        log_targets: For the information about a target, log p(z_m | θ_n) of those that belong to the first M particles,
            (*batch, M, N).
    """
    own, every = _simulated(simulator, theta, designs, num_outer, seed)
    if log_targets is not None:
        log_targets = log_targets.unsqueeze(-3)
        own = (every + log_targets).logsumexp(-1) - log_targets.logsumexp(-1)
    return (own - every.logsumexp(-1)).mean(-1) + math.log(theta.shape[-2])


def log_likely_targets(simulator: DesignSimulator, theta: Tensor, designs: Tensor, num_outer: int) -> Tensor:
    """log p(y'_m | θ_n), (*batch, M, N), of outcomes of the first M particles at random ones of target designs (I, D)."""
    source = theta[..., :num_outer, :]
    chosen = designs.to(theta)[torch.randint(len(designs), source.shape[:-1], device=theta.device)]
    outcome = simulator(source, chosen)
    return simulator.log_likelihood(theta.unsqueeze(-3), chosen.unsqueeze(-2), outcome.unsqueeze(-2))


def nested_utility(
    simulator: DesignSimulator, theta: Tensor, designs: Tensor, num_outer: int, seed: int, utilities: Tensor
) -> Tensor:
    """Expected utility that an outcome adds to a decision, (*batch, J), for utilities (*batch, N, K) of K actions.

    Arguments are those of `nested_information`.
    """
    _, every = _simulated(simulator, theta, designs, num_outer, seed)
    best = (every.softmax(-1) @ utilities.unsqueeze(-3).to(every)).amax(-1)
    return best.mean(-1) - utilities.mean(-2).amax(-1, keepdim=True)


def variance_reduction(table: OutcomeTable, weights: Tensor, values: Tensor) -> Tensor:
    """−½ Σ_k log of the share of variance expected to be left, (*batch, J); exact for the particles.

    Args:
        table: What the particles say of designs ξ_j.
        weights: Shape (*batch, N), with sum 1.
        values: The K parameters of interest, (*batch, N, K) or (N, K).
    """
    weighted = weights.unsqueeze(-1) * (values - weights.unsqueeze(-2) @ values)
    before = (weighted * (values - weights.unsqueeze(-2) @ values)).sum(-2, keepdim=True)
    joint = table.probability.flatten(-3, -2)  # outcomes times designs, and particles
    # Var(θ) − E[Var(θ | y)] = Σ_y p(y) E[θ | y]², for centred θ.
    explained = (joint @ weighted).square() / _mean(joint, weights).clamp_min(1e-12).unsqueeze(-1)
    explained = explained.unflatten(-2, table.probability.shape[-3:-1]).sum(-3)
    return _log_gain(before - explained, before)


def nested_variance_reduction(
    simulator: DesignSimulator, theta: Tensor, designs: Tensor, num_outer: int, seed: int, of: list[int]
) -> Tensor:
    """−½ Σ_k log of the share of variance expected to be left of parameters `of`, (*batch, J); differentiable likewise.

    Arguments are those of `nested_information`. With M = N it is, but for the draws of outcomes, exact for the particles.
    """
    _, every = _simulated(simulator, theta, designs, num_outer, seed)
    values = theta[..., of] - theta[..., of].mean(-2, keepdim=True)
    before = values.square().mean(-2).unsqueeze(-2)
    weights, values = every.softmax(-1), values[..., None, :, :].to(every)  # (*batch, J, M, N), (*batch, 1, N, K)
    left = weights @ values.square() - (weights @ values).square()
    return _log_gain(left.mean(-2), before)


def _simulated(
    simulator: DesignSimulator, theta: Tensor, designs: Tensor, num_outer: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Log-likelihoods of simulated outcomes under their own particle, (*batch, J, M), and under all, (*batch, J, M, N)."""
    source = theta[..., :num_outer, :]
    outcome, design = simulator.simulate_alike(source, designs, seed=seed), designs.unsqueeze(-2)  # (*batch, J, M, O)
    own = simulator.log_likelihood(source.unsqueeze(-3), design, outcome)
    every = simulator.log_likelihood(theta[..., None, None, :, :], design.unsqueeze(-2), outcome.unsqueeze(-2))
    return own, every


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Σ_n w_n v_n, shape (*batch, M), for values (*batch, M, N) or (M, N) and weights (*batch, N)."""
    return (weights.unsqueeze(-2) @ values.mT).squeeze(-2)


def _entropy(probability: Tensor) -> Tensor:
    """−p log p, element by element."""
    probability = probability.clamp_min(1e-12)
    return -probability * probability.log()


def _log_gain(left: Tensor, before: Tensor) -> Tensor:
    """−½ Σ_k log(left_k / before_k) of variances (..., K)."""
    return -0.5 * (left.clamp_min(_TINY) / before.clamp_min(_TINY)).log().sum(-1)
