r"""Reported cases in the first two weeks of an epidemic, a model that is sensitive to its prior (arXiv 2310.11122).

There are N = 83·10⁶ people: S susceptible, I infected; I_0 are infected on day 0. With transmission rate λ and recovery
rate μ per day,

    n_t = λ S_t I_t / N,    S_{t+1} = S_t − n_t,    I_{t+1} = I_t + n_t − μ I_t,

in steps of a day. Infections are reported D days later (D is rounded), with negative-binomial noise of mean m and variance
m + m²/ψ: count_t ~ NegBin(n_{t+D}, ψ), t = 0 … T − 1, and I_0 stands before the first n. Priors:

    λ ~ LogN(log 0.4, 0.5),  μ ~ LogN(log 1/8, 0.2),  D ~ LogN(log 8, 0.2),  I_0 ~ Gamma(2, 1/20),  ψ ~ Exp(mean 5).

Each prior can have a power of its own in a `PowerScaledPrior`. The source writes Exp(5); we read it as a mean of 5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Exponential, Gamma, Independent, LogNormal

from ...utils.checks import as_finite_tensor, check_count, check_positive
from .joint_distribution import JointDistribution

__all__ = ["CovidOutbreak"]


class CovidOutbreak:
    """Daily reported cases of an outbreak as a simulator theta (..., 5) → x (..., T), x = log(1 + count).

    Theta is (5,): λ and μ (1/day), D (days), I_0 (people), ψ.

    Args:
        num_days: Number T of days.
        population: Number N of people.

    Attributes:
        prior: Distribution of theta, event shape (5,).
        names: Names of the parameters.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> outbreak = CovidOutbreak()
        >>> outbreak(outbreak.prior.sample((3,))).shape
        torch.Size([3, 14])
    """

    names = ("λ", "μ", "D", "I_0", "ψ")

    def __init__(self, num_days: int = 14, population: float = 83e6):
        self.num_days = check_count(num_days, "num_days")
        self.population = check_positive(population, "population")
        rates = LogNormal(torch.tensor([0.4, 1 / 8, 8.0]).log(), torch.tensor([0.5, 0.2, 0.2]))
        first, noise = Gamma(torch.tensor([2.0]), torch.tensor([1 / 20])), Exponential(torch.tensor([1 / 5]))
        self.prior = JointDistribution([Independent(part, 1) for part in (rates, first, noise)])

    def __call__(self, theta: Any) -> Tensor:
        """Draw log(1 + count) of each day, (..., T).

        Raises:
            ValueError: If theta is not finite, not positive, or not (..., 5).
        """
        return self.counts(theta).log1p()

    @torch.no_grad()
    def counts(self, theta: Any) -> Tensor:
        """Draw reported cases of each day, (..., T), whole numbers; errors as for a call."""
        mean = self.expected_counts(theta)
        shape = torch.as_tensor(theta, dtype=mean.dtype)[..., 4:].clamp_min(1e-6)
        rate = torch.distributions.Gamma(shape.expand_as(mean), 1.0).sample() * (mean / shape)
        return torch.poisson(rate)

    @torch.no_grad()
    def expected_counts(self, theta: Any) -> Tensor:
        """Expected reports of each day, (..., T), people; errors as for a call."""
        theta = as_finite_tensor(theta, "theta", last_dim=5)
        if not bool((theta > 0).all()):
            index = tuple((theta <= 0).nonzero()[0].tolist())
            raise ValueError(f"theta must be positive, got {theta[index].item()} at index {index}.")
        transmission, recovery, delay, infected, _ = theta.unbind(-1)
        delay = delay.round().long()
        susceptible, new = self.population - infected, [infected]
        for _ in range(self.num_days + int(delay.max() if delay.numel() else 0) - 1):
            cases = torch.minimum(transmission * susceptible * infected / self.population, susceptible)
            susceptible = susceptible - cases
            infected = (infected + cases - recovery * infected).clamp_min(0)
            new.append(cases)
        days = delay.unsqueeze(-1) + torch.arange(self.num_days)
        return torch.stack(new, -1).gather(-1, days)
