r"""A population of people, each with parameters of their own: persons as groups of trials.

Let u = T(θ) be the unconstrained coordinates of a simulator's parameters (`to_unconstrained`: a logit for parameters with
two bounds, a logarithm with one), in which its prior has mean c_k and sd d_k. Persons i = 1 … n are drawn independently,

    u_ik ~ N(m_k, s_k²),   θ_i = T⁻¹(u_i),   y_it ~ p(y | θ_i, ξ_it),   ξ_it at random or by a policy,

and the population has hyper-priors as wide as the simulator's own prior,

    m_k ~ N(c_k, d_k²),   log s_k ~ N(log(0.4 d_k), 0.6²),

so s_k lies between 0.12 and 1.3 d_k with probability 0.95: people differ, but mostly less than the prior allows. Inference
is about φ = (m, log s), which has no bounds. People never leave the support of the simulator's prior.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from ...utils.checks import as_finite_tensor, check_count
from ...utils.quasi_random import quasi_random_draws
from ...utils.seeding import seeded
from ...utils.transforms import rowwise, to_unconstrained
from ..base import DesignSimulator
from ..models.model_family import check_size, draw_sizes, pack_present
from ..rollout import PolicySimulator

__all__ = ["Population"]

_TYPICAL_SD, _SPREAD_OF_SD = 0.4, 0.6
_NUM_DRAWS = 4096  # of the prior, for its mean and sd


class Population:
    """People who differ, under one experiment: φ → x (persons, trials, D + O + 1), an sbi simulator.

    Args:
        simulator: The experiment of one person; its parameters must be continuous.
        num_persons: Number of people; if (low, high), drawn for each population, and padded to `high`.
        num_trials: Trials of each person; if (low, high), drawn for each person.
        policy: Policy, or callable history → design, of every person; designs at random if None.

    Attributes:
        prior: Hyper-prior of φ (2 P,), which sbi takes: means m and then log sds log s, in unconstrained coordinates.
        names: Names of φ's values.
        x_shape: Shape of one packed population.
        transform: Map from a person's theta to unconstrained coordinates, in which people are normally distributed.

    Raises:
        TypeError: If `simulator` is not a `DesignSimulator`.
        ValueError: If a size is out of range, or theta is discrete in part.

    Example:
        >>> from sbi_bed.simulators import BayesianActor, OptimalActor, QuadraticCost
        >>> population = Population(BayesianActor(OptimalActor(QuadraticCost())), num_persons=5, num_trials=20)
        >>> phi, x = population.sample(3, seed=0)
        >>> phi.shape, x.shape
        (torch.Size([3, 6]), torch.Size([3, 5, 20, 3]))
        >>> population.names[1], population.names[4]
        ('mean of mu_0', 'log sd of mu_0')
    """

    def __init__(
        self,
        simulator: DesignSimulator,
        num_persons: int | tuple[int, int] = 20,
        num_trials: int | tuple[int, int] = 60,
        policy: Any = None,
    ):
        if not isinstance(simulator, DesignSimulator):
            raise TypeError(f"a population needs the DesignSimulator of one person, got {simulator!r}.")
        self.simulator = simulator
        self.num_persons, self.num_trials = check_size(num_persons, "num_persons"), check_size(num_trials, "num_trials")
        self.transform = to_unconstrained(simulator.prior)
        free = self.transform(quasi_random_draws(simulator.prior, _NUM_DRAWS))
        centre, spread = free.mean(0), free.std(0)
        loc = torch.cat([centre, (_TYPICAL_SD * spread).log()])
        self.prior = Independent(Normal(loc, torch.cat([spread, torch.full_like(spread, _SPREAD_OF_SD)])), 1)
        names = getattr(simulator, "parameter_names", [f"theta_{k + 1}" for k in range(simulator.theta_dim)])
        self.names = (*(f"mean of {name}" for name in names), *(f"log sd of {name}" for name in names))
        self.x_shape = (self.num_persons[1], self.num_trials[1], simulator.design_dim + simulator.outcome_dim + 1)
        low, horizon = self.num_trials
        policy = self._at_random if policy is None else policy
        self._experiment = PolicySimulator(simulator, policy, horizon, None if low == horizon else low)

    def sample(self, num: int, *, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """`num` populations: φ (num, 2 P) of the hyper-prior and their data x (num, *x_shape), as sbi's trainers take them.

        Raises:
            ValueError: If `num` is below 1.
        """
        with seeded(seed):
            phi = self.prior.sample((check_count(num, "num"),))
            return phi, self(phi)

    def __call__(self, phi: Tensor) -> Tensor:
        """Data x (num, *x_shape) of populations φ (num, 2 P)."""
        return self.measure(self.people(phi, self.num_persons[1]))

    @torch.no_grad()
    def people(self, phi: Any, num_persons: int) -> Tensor:
        """Parameters theta (num, num_persons, P) of people of populations φ (num, 2 P).

        Raises:
            ValueError: If φ has another shape, or is not finite.
        """
        phi = as_finite_tensor(phi, "phi", last_dim=2 * self.simulator.theta_dim)
        if phi.ndim != 2:
            raise ValueError(f"phi must have shape (num, {2 * self.simulator.theta_dim}), got {tuple(phi.shape)}.")
        mean, log_sd = phi.unsqueeze(1).chunk(2, -1)
        free = mean + log_sd.exp() * torch.randn(len(phi), num_persons, self.simulator.theta_dim)
        return rowwise(self.transform.inv, free)

    @torch.no_grad()
    def measure(self, theta: Tensor) -> Tensor:
        """Data x (num, people, trials, D + O + 1) of people theta (num, people, P).

        Where `num_persons` is a range, a number is drawn from it for each population, and people beyond it are padding.
        """
        x = self._experiment(theta.flatten(0, 1)).unflatten(0, theta.shape[:2])
        there = torch.arange(theta.shape[1]) < draw_sizes(self.num_persons, len(theta)).unsqueeze(-1)
        return pack_present(x[..., :-1], (x[..., -1] > 0) & there.unsqueeze(-1))

    def summary_of(self, phi: Tensor) -> dict[str, Tensor]:
        """A population φ (..., 2 P) in the units of θ: the parameters of the median person, and of people one sd away.

        Returns:
            "median", "low" and "high", (..., P) each; the bounds are at m ± s of each coordinate.
        """
        mean, log_sd = phi.chunk(2, -1)
        shifted = [rowwise(self.transform.inv, mean + sign * log_sd.exp()) for sign in (-1, 0, 1)]
        return dict(zip(("low", "median", "high"), shifted, strict=True))

    def _at_random(self, history: Tensor) -> Tensor:
        return self.simulator.design_space.sample(tuple(history.shape[:-2]))
