r"""Prey population: how many prey to give to a predator (Moffat et al. 2020, arXiv 1907.02179; as in Blau et al. 2022,
arXiv 2202.00821).

A predator eats for τ = 24 hours from N_0 prey, which are not replaced. With attack rate a and handling time T_h (hours)
their number falls by Holling's type III functional response,

    dN/dt = −a N² / (1 + a T_h N²),    y ~ Binomial(N_0, 1 − N(τ) / N_0),
    log a ~ N(−1.4, 1.35²),   log T_h ~ N(−1.4, 1.35²).

The equation is solved exactly: 1/(a N) − T_h N grows by t, so that N(τ) is the positive root of a T_h N² + a q N − 1 = 0
with q = τ + 1/(a N_0) − T_h N_0. (Published figures come from a Runge-Kutta scheme with steps of one hour.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, constraints

from ..base import DesignSimulator
from ..design_space import DesignSpace

__all__ = ["PreyPopulation"]


class _Counts(type(constraints.nonnegative_integer)):
    """Whole numbers from 0 on, which nets read as log(1 + y): they range over decades."""

    def __init__(self):
        super().__init__(0)

    @staticmethod
    def read(outcome: Tensor) -> Tensor:
        return torch.log1p(outcome)


class PreyPopulation(DesignSimulator):
    """Learn how fast a predator eats from how many of N_0 prey it eats in a day.

    Theta is (2,): log a (1 / prey / hour) and log T_h (hours); a design is a whole number N_0 of prey; an outcome is the
    number eaten.

    Args:
        prior: Distribution of theta, event shape (2,); the normal above if None.
        max_prey: Largest N_0; the smallest is 1.

    Raises:
        ValueError: If the prior is not over two parameters.

    Example:
        >>> simulator = PreyPopulation()
        >>> theta = torch.tensor([0.05, 0.5]).log()
        >>> simulator.share_eaten(theta, torch.tensor([[5.0], [50.0], [300.0]])).round(decimals=2)
        tensor([0.8500, 0.8600, 0.1600])
    """

    parameter_names = ("log_attack_rate", "log_handling_time")
    hours = 24.0

    def __init__(self, prior: Distribution | None = None, max_prey: int = 300):
        super().__init__(
            prior=MultivariateNormal(torch.full((2,), -1.4), 1.35**2 * torch.eye(2)) if prior is None else prior,
            simulate=self._simulate,
            design_space=DesignSpace(constraints.integer_interval(1, max_prey), names=("prey",)),
            log_likelihood=self._log_probability,
            outcome_space=_Counts(),
        )
        if self.theta_dim != 2:
            raise ValueError(f"theta is log (a, T_h): the prior must be over 2 values, got {self.theta_dim}.")

    def share_eaten(self, theta: Tensor, design: Tensor) -> Tensor:
        """1 − N(τ) / N_0, shape (...), for theta (..., 2) and N_0 (..., 1)."""
        attack, handling = theta.exp().unbind(-1)
        prey = design.squeeze(-1)
        rest = self.hours + 1 / (attack * prey) - handling * prey  # q above
        root = (rest.square() + 4 * handling / attack).sqrt()
        # The positive root of the quadratic, without a difference of nearly equal numbers.
        left = torch.where(rest > 0, 2 / (attack * (rest.abs() + root)), (rest.abs() + root) / (2 * handling))
        return (1 - left / prey).clamp(1e-6, 1 - 1e-6)

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        share = self.share_eaten(theta, design)
        return torch.binomial(design.squeeze(-1).expand_as(share).contiguous(), share.contiguous()).unsqueeze(-1)

    def _log_probability(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        prey, eaten = design.squeeze(-1), outcome.squeeze(-1)
        share = self.share_eaten(theta, design)
        left = prey - eaten
        ways = torch.lgamma(prey + 1) - torch.lgamma(eaten + 1) - torch.lgamma(left.clamp_min(0) + 1)
        value = ways + eaten * share.log() + left * torch.log1p(-share)
        return torch.where(left < 0, -torch.inf, value)
