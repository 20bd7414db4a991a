r"""What one more trial would tell, for particles θ_n with weights w_n: the criteria of one-step-lookahead design.

**Information about θ** (Lindley 1956; MacKay 1992; "BALD", Houlsby et al. 2011, arXiv 1112.5745). With finitely many
outcomes k and p_kn = p(y = k | θ_n, ξ), exactly

    I(y; θ | ξ) = H(Σ_n w_n p_·n) − Σ_n w_n H(p_·n),   H(q) = −Σ_k q_k log q_k.

With infinitely many, for outcomes y_m simulated from θ_m, m = 1..M, among N equally weighted particles,

    1/M Σ_m [ log p(y_m | θ_m, ξ) − log 1/N Σ_n p(y_m | θ_n, ξ) ],

whose expectation is a lower bound, since θ_m is one of the θ_n (sPCE of one step, Foster et al. 2020, arXiv
1911.00294).

**Information about predictions** ("EPIG", Bickford Smith et al. 2023, arXiv 2304.08151): the mean over designs ξ' of
I(y; y' | ξ, ξ'), from the joint probabilities Σ_n w_n p(y = k | θ_n, ξ) p(y' = l | θ_n, ξ'). Parameters that no
question depends on are not worth a trial.

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
    "finite_outcomes",
    "mutual_information",
    "nested_information",
    "nested_variance_reduction",
    "predictive_information",
    "variance_reduction",
]

_MOST_OUTCOMES = 64
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


def predictive_information(table: OutcomeTable, weights: Tensor) -> Tensor:
    """Mean over the table's designs ξ_i of I(y; y' | ξ_j, ξ_i) in nats, shape (*batch, J), for weights (*batch, N)."""
    num_outcomes, num_designs = table.probability.shape[-3:-1]
    # The last outcome's probabilities follow from the margins, which saves most of the work for yes-or-no outcomes.
    kept = table.probability[..., :-1, :, :].flatten(-3, -2)
    joint = (kept * weights.unsqueeze(-2)) @ kept.mT
    margin = _mean(table.probability.flatten(-3, -2), weights)
    shape = (num_outcomes - 1, num_designs)
    joint = joint.unflatten(-1, shape).unflatten(-3, shape)  # (*batch, K−1, J, K−1, J)
    margins = margin.unflatten(-1, (num_outcomes, num_designs))
    joint = torch.cat([joint, margins[..., None, None, :-1, :] - joint.sum(-4, keepdim=True)], -4)
    joint = torch.cat([joint, margins[..., None, None] - joint.sum(-2, keepdim=True)], -2)
    entropy = _entropy(margins).sum(-2)  # (*batch, J)
    both = _entropy(joint).sum((-4, -2)).mean(-1)
    return entropy + entropy.mean(-1, keepdim=True) - both


def nested_information(simulator: DesignSimulator, theta: Tensor, designs: Tensor, num_outer: int, seed: int) -> Tensor:
    """Contrastive lower bound on I(y; θ | ξ_j) in nats, shape (*batch, J); differentiable where outcomes are.

    Args:
        simulator: Experiment with a likelihood.
        theta: Equally weighted particles in random order, (*batch, N, P).
        designs: Designs (*batch, J, D).
        num_outer: Number M of particles, the first ones, that outcomes are simulated from.
        seed: Seeds the outcomes. All designs see the same random numbers, so their differences are not lost in noise.
            The caller's generator is reseeded: call it inside `seeded`.
    """
    own, every = _simulated(simulator, theta, designs, num_outer, seed)
    return (own - every.logsumexp(-1)).mean(-1) + math.log(theta.shape[-2])


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
