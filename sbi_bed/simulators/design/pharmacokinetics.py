r"""Pharmacokinetics (Ryan et al. 2014; as in Ivanova et al. 2021, arXiv 2111.02329): when to take blood after a dose.

One compartment with first-order absorption k_a and elimination k_e, volume V, and a dose of 400 (in litres and mg, say);
the concentration in a sample taken at time ξ, in hours, is

    μ(θ, ξ) = (400 / V) · k_a / (k_a − k_e) · (exp(−k_e ξ) − exp(−k_a ξ)),    y ~ N(μ, 0.01 μ² + 0.1),

with θ = log (k_a, k_e, V) ~ N(log (1, 0.1, 20), 0.05 I). The quotient is symmetric in the two rates: with k the smaller
and g ≥ 0 their difference it is ξ exp(−k ξ) φ(g ξ), φ(x) = (1 − exp(−x)) / x, which holds at k_a = k_e too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, constraints

from ..base import DesignSimulator
from ..design_space import DesignSpace

__all__ = ["Pharmacokinetics"]


class Pharmacokinetics(DesignSimulator):
    """Learn how a body takes up and clears a drug from blood samples at chosen times.

    Theta is (3,): logs of the rates of absorption and elimination (1/hour) and of the volume; a design is one time in
    (0, 24) hours; an outcome is one concentration, dose by volume, which measurement noise can make negative.

    Args:
        prior: Distribution of theta, event shape (3,); the normal above if None.

    Raises:
        ValueError: If the prior is not over three parameters.

    Example:
        >>> theta = torch.tensor([1.0, 0.1, 20.0]).log()
        >>> times = torch.tensor([[1.0], [4.0], [24.0]])  # hours
        >>> Pharmacokinetics().concentration(theta, times).flatten().round(decimals=1)
        tensor([11.9000, 14.5000,  2.0000])
    """

    dose, relative_variance, variance = 400.0, 0.01, 0.1

    def __init__(self, prior: Distribution | None = None):
        centre = torch.tensor([1.0, 0.1, 20.0]).log()
        super().__init__(
            prior=MultivariateNormal(centre, 0.05 * torch.eye(3)) if prior is None else prior,
            simulate=self._simulate,
            design_space=DesignSpace(constraints.interval(0.0, 24.0), names=("time",)),
            log_likelihood=self._log_density,
            reparameterized=True,
        )
        if self.theta_dim != 3:
            raise ValueError(f"theta is log (k_a, k_e, V): the prior must be over 3 values, got {self.theta_dim}.")

    def concentration(self, theta: Tensor, design: Tensor) -> Tensor:
        """Concentration μ without noise, shape (...), for theta (..., 3) and time (..., 1)."""
        absorption, elimination, volume = theta.exp().unbind(-1)
        time = design.squeeze(-1)
        slow, gap = torch.minimum(absorption, elimination), (absorption - elimination).abs()
        return self.dose / volume * absorption * time * torch.exp(-slow * time) * _mean_decay(gap * time)

    def _variance(self, mean: Tensor) -> Tensor:
        return self.relative_variance * mean.square() + self.variance

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        mean = self.concentration(theta, design)
        return (mean + self._variance(mean).sqrt() * torch.randn_like(mean)).unsqueeze(-1)

    def _log_density(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        mean = self.concentration(theta, design)
        variance = self._variance(mean)
        return -0.5 * ((outcome.squeeze(-1) - mean).square() / variance + variance.log() + math.log(2 * math.pi))


def _mean_decay(x: Tensor) -> Tensor:
    """(1 − exp(−x)) / x for x ≥ 0; near 0 by its series, since the quotient's gradient cancels there."""
    series = 1 - x / 2 + x.square() / 6 - x**3 / 24
    away = x.clamp_min(0.01)
    return torch.where(x < 0.01, series, -torch.expm1(-away) / away)
