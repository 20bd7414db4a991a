r"""Reaching for a target next to a penalty area: an actor whose actions are points in a plane.

A person points rapidly at a disc and wins one point inside it, but loses `penalty` points inside a second disc at its left;
where the discs overlap, both count (Trommershäuser, Maloney & Landy 2003, Journal of the Optical Society of America A 20).
Endpoints scatter about the point aimed at with correlated noise in both coordinates, and the target is seen with noise:

    m ~ N(s, σ² I),   prior s ~ N(μ_0 (1, 1), σ_0² I),   belief N(μ_p, σ_p² I),   r ~ N(a, σ_r² [[1, ρ], [ρ, 1]]).

Aiming to the right of the target's centre avoids the penalty, by more for a larger penalty or noise. The cost depends
on r − s alone, so a* = μ_p + d(σ_p, σ_r, penalty), and responses are normal given the target, an exact likelihood:

    r | s ~ N(w s + (1 − w) μ_0 + d,  w² σ² I + σ_r² [[1, ρ], [ρ, 1]]),   w = σ_0² / (σ_0² + σ²).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Uniform, constraints

from ...utils.checks import check_positive
from ..base import DesignSimulator
from .cost import ActorCost
from .perception import Perception

__all__ = ["ReachingCost", "ReachingPerception", "ReachingTask"]


class ReachingCost(ActorCost):
    """−1 inside the target, plus `penalty` inside the penalty disc; discs have radius 1, which is the unit of length.

    Args:
        separation: Distance of the penalty disc's centre from the target's, to the left.
        penalty: Prior of the penalty; uniform from 0 to 5 if None.

    Raises:
        ValueError: If `separation` is not positive.

    Example:
        >>> cost = ReachingCost(separation=1.5)
        >>> response = torch.tensor([[0.0, 0.0], [-0.75, 0.0], [-1.5, 0.0], [2.0, 0.0]])
        >>> cost(response, torch.zeros(2), penalty=torch.tensor(3.0)).tolist()
        [-1.0, 2.0, 3.0, 0.0]
    """

    shift_invariant = True
    action_dim = 2

    def __init__(self, separation: float = 1.5, penalty: Distribution | None = None):
        self.separation = check_positive(separation, "separation")
        self.parameters = {"penalty": penalty or Uniform(0.0, 5.0)}

    def __call__(self, response: Tensor, state: Tensor, penalty: Tensor) -> Tensor:
        """Costs (...) of responses (..., 2) where targets are at (..., 2)."""
        x, y = (response - state).unbind(-1)
        height = y.square()
        inside, lost = x.square() + height < 1, (x + self.separation).square() + height < 1
        return penalty * lost - inside.to(x)

    def describe(self) -> dict[str, Any]:
        """Also the separation."""
        return {**super().describe(), "separation": self.separation}


class ReachingPerception(Perception):
    """Normal perception of points in a plane and correlated motor noise; lengths in units of the target's radius.

    Args:
        correlation: ρ of the two coordinates of the motor noise, between −1 and 1.
        **ranges: As for `Perception`; "stimulus" and "mu_0" are of both coordinates.

    Raises:
        ValueError: If `correlation` is out of range.

    Example:
        >>> noise = ReachingPerception(correlation=0.5).sample_response(torch.zeros(20_000, 2), 0.4)
        >>> bool((noise.T.cov() - 0.16 * torch.tensor([[1.0, 0.5], [0.5, 1.0]])).abs().max() < 0.01)
        True
    """

    action_dim = 2
    default_ranges: ClassVar[dict[str, tuple[float, float]]] = {
        "stimulus": (-5.0, 5.0),
        "mu_0": (-5.0, 5.0),
        "sigma": (0.05, 0.5),
        "sigma_0": (0.1, 2.0),
        "sigma_r": (0.2, 0.8),
    }

    def __init__(self, correlation: float = 0.4, **ranges: tuple[float, float]):
        if not -1 < correlation < 1:
            raise ValueError(f"correlation must lie between −1 and 1, got {correlation}.")
        super().__init__(**ranges)
        self.correlation = float(correlation)

    def describe(self) -> dict[str, Any]:
        """Also the correlation."""
        return {**super().describe(), "settings": {"correlation": self.correlation}}

    def correlate(self, noise: Tensor) -> Tensor:
        """Response noise (..., 2) made of independent noise (..., 2)."""
        first, second = noise.unbind(-1)
        return torch.stack([first, self.correlation * first + math.sqrt(1 - self.correlation**2) * second], -1)

    def response_noise_log_prob(self, offset: Tensor, sigma_r: Tensor) -> Tensor:
        """Log density (...) of the response's noise (..., 2)."""
        first, second = offset.unbind(-1)
        scale = math.sqrt(1 - self.correlation**2)
        independent = torch.stack([first, (second - self.correlation * first) / scale], -1)
        return self.noise_log_prob(independent, sigma_r) - math.log(scale)


class ReachingTask(DesignSimulator):
    """Reaching as an experiment: design = where the target is, outcome = where the finger lands.

    theta holds the parameters that are not fixed, in the order sigma, sigma_0, mu_0, sigma_r, penalty. Designs and
    outcomes are points (2,), in radii of the target. The likelihood is exact, given the actor.

    Args:
        actor: A `NeuralActor` (or `OptimalActor`) for a `ReachingCost`.
        fixed: Values of known parameters; {"sigma": 0.2, "mu_0": 0.0} if None.
        prior: Distribution of theta; uniform over the actor's training ranges if None.

    Attributes:
        names: Names of theta's values.

    Raises:
        ValueError: If the actor is for another kind of cost, or a fixed parameter unknown.

    Example:
        >>> from sbi_bed.neural_nets import NeuralActor
        >>> task = ReachingTask(NeuralActor(ReachingCost(), ReachingPerception()))  # not trained yet
        >>> theta = task.prior.sample((3,))
        >>> outcome = task(theta, torch.zeros(2))
        >>> task.names, task.log_likelihood(theta, torch.zeros(2), outcome).shape
        (('sigma_0', 'sigma_r', 'penalty'), torch.Size([3]))
    """

    def __init__(self, actor: Any, fixed: Mapping[str, float] | None = None, prior: Distribution | None = None):
        if not (isinstance(actor.cost, ReachingCost) and isinstance(actor.perception, ReachingPerception)):
            raise ValueError(f"the actor must be for a ReachingCost with ReachingPerception, got {actor.cost.name}.")
        self.actor, self.fixed = actor, dict({"sigma": 0.2, "mu_0": 0.0} if fixed is None else fixed)
        ranges = {**actor.perception.ranges, **actor.cost.training_box}
        known = ("sigma", "sigma_0", "mu_0", "sigma_r", "penalty")
        unknown = [name for name in self.fixed if name not in known]
        if unknown:
            raise ValueError(f"there is no parameter {unknown[0]!r}, only {', '.join(known)}.")
        self.names = tuple(name for name in known if name not in self.fixed)
        if prior is None:
            low, high = torch.tensor([ranges[name] for name in self.names]).T
            prior = Independent(Uniform(low, high), 1)
        low, high = ranges["stimulus"]
        space = constraints.independent(constraints.interval(torch.full((2,), low), torch.full((2,), high)), 1)
        super().__init__(prior, self._respond, space, self._log_density, (2,), reparameterized=True)

    def parameters(self, theta: Tensor) -> dict[str, Tensor]:
        """Name -> values (...) of all parameters, for theta (..., P)."""
        given = dict(zip(self.names, theta.unbind(-1), strict=True))
        return given | {name: theta.new_full((), value) for name, value in self.fixed.items()}

    def _aim(self, theta: Tensor, design: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean response (..., 2), weight of the measurement, σ and σ_r (...)."""
        values = self.parameters(theta)
        sigma, sigma_0, mu_0 = values["sigma"], values["sigma_0"], values["mu_0"].unsqueeze(-1)
        centre = mu_0.expand(*theta.shape[:-1], 2)
        offset = self.actor(centre, **values) - centre  # the belief there is at μ_0
        weight = sigma_0.square() / (sigma_0.square() + sigma.square())
        mean = weight.unsqueeze(-1) * design + (1 - weight.unsqueeze(-1)) * mu_0 + offset
        return mean, weight, sigma, values["sigma_r"]

    def _respond(self, theta: Tensor, design: Tensor) -> Tensor:
        mean, weight, sigma, sigma_r = self._aim(theta, design)
        perceived = (weight * sigma).unsqueeze(-1) * torch.randn_like(mean)
        return mean + perceived + self.actor.perception.sample_response_noise(mean, sigma_r)

    def _log_density(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        mean, weight, sigma, sigma_r = self._aim(theta, design)
        common, rho = (weight * sigma).square(), self.actor.perception.correlation
        # the sum and the difference of the coordinates are independent
        residual = outcome - mean
        total, gap = residual.sum(-1), residual[..., 0] - residual[..., 1]
        wide, narrow = 2 * (common + sigma_r.square() * (1 + rho)), 2 * (common + sigma_r.square() * (1 - rho))
        quadratic = total.square() / wide + gap.square() / narrow
        return -0.5 * (quadratic + wide.log() + narrow.log()) - math.log(2 * math.pi) + math.log(2)
