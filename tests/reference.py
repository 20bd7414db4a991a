r"""Exact posteriors over two parameters, on a grid that refines itself where the density bends.

A coarse grid covers `bounds`. A cell is cut into 3 × 3 as long as log p(θ, h) varies within it and it may hold any mass
to speak of, judged by the density at its centre and its slope there. So a posterior of width 0.002 inside a prior of width
12 is resolved as well as a ring across the whole prior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_bed.simulators import DesignSimulator
from sbi_bed.simulators.base import prior_log_prob
from sbi_bed.utils import unpack_history

_CUTS = 3
_MAX_DEPTH = 16
_MAX_CELLS = 3_000_000


@dataclass(frozen=True)
class GridPosterior:
    """An exact posterior as cells of constant density.

    Attributes:
        centers: Centre of each cell, (N, 2), float64.
        sides: Side lengths of each cell, (N, 2).
        log_mass: Log posterior mass of each cell, (N,), normalised.
        log_evidence: log p(h), nats.
        log_joint: log p(θ) + log p(h | θ), (N, 2) -> (N,).
    """

    centers: Tensor
    sides: Tensor
    log_mass: Tensor
    log_evidence: float
    log_joint: Callable[[Tensor], Tensor]

    @property
    def mean(self) -> Tensor:
        """Posterior mean (2,)."""
        return self.log_mass.exp() @ self.centers

    @property
    def covariance(self) -> Tensor:
        """Posterior covariance (2, 2), the spread within cells included."""
        gap, mass = self.centers - self.mean, self.log_mass.exp()
        return torch.einsum("n,ni,nj->ij", mass, gap, gap) + torch.diag(mass @ self.sides.square()) / 12

    def sample(self, num_samples: int, seed: int | None = None) -> Tensor:
        """Independent draws (num_samples, 2), float32."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        cumulative = self.log_mass.exp().cumsum(0)
        uniform = torch.rand(num_samples, generator=generator, dtype=torch.float64) * cumulative[-1]
        cell = torch.searchsorted(cumulative, uniform).clamp_max(len(cumulative) - 1)
        jitter = torch.rand(num_samples, 2, generator=generator, dtype=torch.float64) - 0.5
        return (self.centers[cell] + jitter * self.sides[cell]).float()

    def log_prob(self, theta: Tensor) -> Tensor:
        """Exact log density (...) at theta (..., 2)."""
        return self.log_joint(theta.double()) - self.log_evidence


def grid_posterior(
    simulator: DesignSimulator,
    history: Tensor,
    bounds: tuple[Tensor | float, Tensor | float],
    coarse: int = 200,
    variation: float = 0.3,
) -> GridPosterior:
    """The exact posterior of two parameters given one history.

    Args:
        simulator: Experiment with a likelihood and two parameters.
        history: Shape (n, D + O + 1), padded or not.
        bounds: Lower and upper corner of a box that holds all mass of the prior, numbers or (2,).
        coarse: Cells along each axis of the first grid.
        variation: A cell is cut until log p(θ, h) varies by less than this within it (where it has any mass).
    """
    low, high = (torch.as_tensor(bound, dtype=torch.float64).expand(2) for bound in bounds)
    log_joint = joint_density(simulator, history)
    side = (high - low) / coarse
    axes = [low[i] + side[i] * (torch.arange(coarse, dtype=torch.float64) + 0.5) for i in range(2)]
    centers = torch.cartesian_prod(*axes)
    done: list[tuple[Tensor, Tensor, Tensor]] = []
    offsets = (torch.cartesian_prod(*[torch.arange(_CUTS, dtype=torch.float64)] * 2) - (_CUTS - 1) / 2) / _CUTS
    for _ in range(_MAX_DEPTH):
        log_density, slope = _value_and_slope(log_joint, centers)
        # A peak far narrower than a cell shows only as its flank: what counts is how high the density may be in the cell.
        rise = slope @ side / 2
        matters = log_density + rise + side.log().sum() > _log_total(done, log_density, side) - 30.0
        active = matters & (2 * rise / _CUTS > variation)
        done.append((centers[~active], side.expand(int((~active).sum()), 2), log_density[~active]))
        if not active.any():
            break
        centers = (centers[active].unsqueeze(1) + offsets * side).flatten(0, 1)
        if len(centers) > _MAX_CELLS:
            raise ValueError(f"the grid would need {len(centers)} cells; give narrower bounds or a smaller coarse.")
        side = side / _CUTS
    else:
        raise ValueError(f"the density still varies within cells of side {side.tolist()}.")
    centers, sides, log_density = (torch.cat(part) for part in zip(*done, strict=True))
    log_mass = log_density + sides.log().sum(-1)
    log_evidence = log_mass.logsumexp(0)
    return GridPosterior(centers, sides, log_mass - log_evidence, float(log_evidence), log_joint)


def _value_and_slope(log_joint: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[Tensor, Tensor]:
    """log p(θ, h) (N,) and the absolute values of its gradient (N, 2), 0 where there is none."""
    values, slopes = [], []
    for part in theta.split(200_000):
        part = part.clone().requires_grad_()
        value = log_joint(part)
        (slope,) = torch.autograd.grad(value.sum(), part)
        values.append(value.detach())
        slopes.append(slope.abs().nan_to_num(0.0, posinf=0.0))
    return torch.cat(values), torch.cat(slopes)


def joint_density(simulator: DesignSimulator, history: Tensor) -> Callable[[Tensor], Tensor]:
    """log p(θ) + log p(h | θ) as a function of theta (..., P), in float64, trial by trial."""
    designs, outcomes = unpack_history(history.double(), simulator.design_dim)

    def log_joint(theta: Tensor) -> Tensor:
        total = prior_log_prob(simulator.prior, theta).double()
        for design, outcome in zip(designs, outcomes, strict=True):
            total = total + simulator.log_likelihood(theta, design, outcome)
        return total

    return log_joint


def _log_total(done: list[tuple[Tensor, Tensor, Tensor]], log_density: Tensor, side: Tensor) -> Tensor:
    parts = [density + sides.log().sum(-1) for _, sides, density in done] + [log_density + side.log().sum()]
    return torch.cat(parts).logsumexp(0)


def grid_moments(
    simulator: DesignSimulator, history: Tensor, low: list[float], high: list[float], num: int
) -> tuple[Tensor, Tensor]:
    """Posterior mean and sd (P,) by a grid of `num` points a parameter between low and high, which hold the posterior."""
    axes = [torch.linspace(a, b, num, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    theta = torch.cartesian_prod(*axes)
    weight = joint_density(simulator, history)(theta).softmax(0).unsqueeze(-1)
    mean = (weight * theta).sum(0)
    return mean, (weight * (theta - mean).square()).sum(0).sqrt()
