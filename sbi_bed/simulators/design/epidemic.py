r"""A stochastic epidemic (Ivanova et al. 2021, arXiv 2111.02329): when to count the infected of one outbreak.

Of N = 500 people S are susceptible and I infected, 2 at first. With rates of infection β and recovery γ per day,

    dS = −βSI/N dt − √(βSI/N) dW_1,    dI = (βSI/N − γI) dt + √(βSI/N) dW_1 − √(γI) dW_2,

log (β, γ) ~ N(log (0.5, 0.1), 0.25 I). A design is the time of the next count, in days, later than the last and before
day 100; an outcome is I at that time. All counts of a run are taken **on the same path**, so that the path is the run's
hidden state: Euler and Maruyama's scheme draws the whole of it at the start, on a grid of times. There is no likelihood.

Between grid points paths are straight, so the gradient of an outcome in its design is the path's slope, as in the paper.
It is that for the random numbers of this path; none passes to θ, nor from one count to the next.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, constraints

from ...utils.checks import check_count
from ..base import DesignSimulator
from ..design_space import DesignSpace

__all__ = ["StochasticEpidemic"]

_DURATION = 100.0
_LAST_MOMENT = 1e-4  # days at the end that stay open, so that there is always a next time, in float32 too


class StochasticEpidemic(DesignSimulator):
    """Learn how an infection spreads from counts of the infected at chosen, increasing times.

    Theta is (2,): logs of the rates of infection and recovery (1/day); a design is one time (1,) in days; an outcome is
    one count (1,) in [0, N], real as in the diffusion. The hidden state is the path of I on the grid, (100 / dt
    + 1,), float32. Nets read counts as log(1 + I), which evens out growth and is finite for an extinct outbreak.

    **Outbreaks that do not take off.** The paper throws away simulations whose mean infected count over time is below
    1, with their theta, so its theta follows p(θ | outbreak), a prior without a density to compute. Here the prior is
    the one stated, and the *path* is given the outbreak: one that stays below is drawn again for the same theta, up to
    `num_redraws` times; if none takes off, as happens where γ > β, the first is kept. Under the normal prior 13 % of
    paths are drawn again, 0.7 % stay below, and the Kullback–Leibler divergence of p(θ | outbreak) from p(θ) is 0.02
    nats.

    Args:
        prior: Distribution of theta, event shape (2,); the normal above if None.
        dt: Spacing of the grid in days; it must divide 100.
        population: Number N of people.
        initially_infected: Number of those infected at time 0.
        min_mean_infected: Mean infected count over time below which a path is drawn again; 0 to keep every path.

    Attributes:
        num_steps: Steps of a path.

    Raises:
        ValueError: If the prior is not over two parameters, `dt` does not divide 100, or a number is out of
            range.

    Example:
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import rollout
        >>> simulator = StochasticEpidemic()
        >>> times, counts = rollout(simulator, RandomPolicy(simulator), simulator.prior.sample((3,)), 5)
        >>> bool((times.diff(dim=-2) > 0).all())
        True
    """

    num_redraws = 10

    def __init__(
        self,
        prior: Distribution | None = None,
        dt: float = 0.25,
        *,
        population: int = 500,
        initially_infected: int = 2,
        min_mean_infected: float = 1.0,
    ):
        self.num_steps = round(_DURATION / dt) if dt > 0 else 0
        if self.num_steps == 0 or not math.isclose(self.num_steps * dt, _DURATION, rel_tol=1e-6):
            raise ValueError(f"dt must divide {_DURATION:g} days, got {dt}.")
        self.dt = _DURATION / self.num_steps
        self.population = check_count(population, "population")
        self.initially_infected = check_count(initially_infected, "initially_infected")
        if initially_infected > population:
            raise ValueError(f"{initially_infected} initially infected are more than the population, {population}.")
        if not 0 <= min_mean_infected < math.inf:
            raise ValueError(f"min_mean_infected must be finite and not negative, got {min_mean_infected}.")
        self.min_mean_infected = float(min_mean_infected)
        centre = torch.tensor([0.5, 0.1]).log()
        super().__init__(
            prior=MultivariateNormal(centre, 0.25 * torch.eye(2)) if prior is None else prior,
            simulate=self._count,
            # Centred on the first fifth of the time that is left, since an outbreak peaks early.
            design_space=DesignSpace(
                constraints.interval(0.0, _DURATION), loc=math.log(1 / 4), names=("time",), given=_after_the_last
            ),
            reparameterized=True,
            outcome_space=constraints.greater_than(-1.0),  # its bijection's inverse is log(1 + I)
            initial_state=self._paths,
        )
        if self.theta_dim != 2:
            raise ValueError(f"theta is log (beta, gamma): the prior must be over 2 values, got {self.theta_dim}.")

    @torch.no_grad()
    def _paths(self, theta: Tensor) -> Tensor:
        """Paths of I on the grid, (..., num_steps + 1), for theta (..., 2)."""
        flat = theta.reshape(-1, 2).float()
        path = self._draw(flat)
        low = (path.mean(0) < self.min_mean_infected).nonzero().squeeze(-1)
        if len(low) > 0:  # all further draws side by side: time goes by the number of steps, hardly by that of paths
            again = self._draw(flat[low].repeat(self.num_redraws, 1)).unflatten(-1, (self.num_redraws, len(low)))
            took_off = again.mean(0) >= self.min_mean_infected
            first = took_off.int().argmax(0, keepdim=True).expand(len(again), 1, -1)
            path[:, low] = torch.where(took_off.any(0), again.gather(1, first).squeeze(1), path[:, low])
        return path.mT.reshape(*theta.shape[:-1], len(path))

    def _draw(self, theta: Tensor) -> Tensor:
        """Paths (num_steps + 1, B) for theta (B, 2), unconditionally, by the Euler–Maruyama scheme."""
        beta, gamma = (theta.exp() * self.dt).unbind(-1)
        noise = torch.randn(self.num_steps, 2, len(theta), dtype=theta.dtype, device=theta.device)
        path = theta.new_empty(self.num_steps + 1, len(theta))
        path[0] = self.initially_infected
        susceptible = self.population - path[0]
        room, none = torch.empty_like(susceptible), torch.zeros_like(susceptible)
        hazard = torch.stack([beta, gamma])  # of infection and of recovery, for each of the infected and step
        events, spread, per_susceptible = torch.empty_like(hazard), torch.empty_like(hazard), beta / self.population
        infections, recoveries, of_infection = events[0], events[1], hazard[0]
        for infected, after, z in zip(path, path[1:], noise, strict=False):
            torch.mul(per_susceptible, susceptible, out=of_infection)
            torch.mul(hazard, infected, out=events)
            torch.sqrt(events, out=spread)
            events.addcmul_(spread, z)
            susceptible.sub_(infections).clamp_(0.0, self.population)
            torch.add(infected, infections, out=after)
            torch.sub(self.population, susceptible, out=room)
            after.sub_(recoveries).clamp_(none, room)  # S + I ≤ N
        return path

    def _count(self, theta: Tensor, design: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
        """I on the path (..., num_steps + 1) at a time (..., 1), by linear interpolation, and the path as it was."""
        batch_shape = torch.broadcast_shapes(theta.shape[:-1], design.shape[:-1], path.shape[:-1])
        place = design.expand(*batch_shape, 1) / self.dt
        left = place.detach().floor().clamp(0, self.num_steps - 1).long()
        on_grid = path.expand(*batch_shape, -1)
        before, after = on_grid.gather(-1, left).to(design), on_grid.gather(-1, left + 1).to(design)
        return before + (after - before) * (place - left), path


def _after_the_last(history: Tensor) -> constraints.Constraint:
    """Times after the last one of a history (*batch, n, 3)."""
    last = history[..., -1, :1] if history.shape[-2] else history.new_zeros(*history.shape[:-2], 1)
    return constraints.interval(last.clamp_max(_DURATION - _LAST_MOMENT), _DURATION)
