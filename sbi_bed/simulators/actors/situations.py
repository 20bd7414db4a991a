"""Random situations for actors: stimuli, measurements and parameters from all of the ranges that actors are trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .cost import ActorCost
from .perception import Belief, Perception

__all__ = ["Situations", "draw_situations"]


@dataclass(frozen=True)
class Situations:
    """N situations to act in.

    Attributes:
        measurement: Measurements, (N,) or (N, D).
        person: Name -> values (N,) of sigma, sigma_0, mu_0, sigma_r.
        cost_parameters: Name -> values (N,).
        belief: Beliefs after the measurements.
    """

    measurement: Tensor
    person: dict[str, Tensor]
    cost_parameters: dict[str, Tensor]
    belief: Belief

    @property
    def parameters(self) -> dict[str, Tensor]:
        """All parameters."""
        return self.person | self.cost_parameters


def draw_situations(cost: ActorCost, perception: Perception, num: int, everywhere: bool = False) -> Situations:
    """Situations drawn from torch's generator, float32.

    Stimuli and a person's parameters are uniform over the perception's ranges, the cost's are from their priors, and
    measurements follow from stimuli. With `everywhere` half of all values of μ_0, stimulus and cost parameters are uniform
    over their ranges on another scale (logarithmic where positive, for the cost's parameters), and half of all beliefs have
    locations uniform over all that are possible. So a net that trains on them sees the corners, too.

    Args:
        cost: What responses cost.
        perception: How stimuli are perceived.
        num: Number N.
        everywhere: Whether to fill the corners of the ranges.

    Example:
        >>> from sbi_bed.simulators import LogNormalPerception, PinballCost
        >>> situations = draw_situations(PinballCost(), LogNormalPerception(), 5)
        >>> list(situations.parameters)
        ['sigma', 'sigma_0', 'sigma_r', 'mu_0', 'alpha']
    """
    person = {name: _uniform(num, perception.ranges[name]) for name in ("sigma", "sigma_0", "sigma_r", "mu_0")}
    event = () if perception.action_dim == 1 else (perception.action_dim,)
    stimulus = perception.sample_stimulus(num, person["sigma_0"], person["mu_0"])
    measurement = perception.sample_measurement(stimulus, person["sigma"])
    belief = perception.belief(measurement, person["sigma"], person["sigma_0"], person["mu_0"])
    if everywhere:
        low, high = perception.location_range()
        anywhere = low + (high - low) * torch.rand(num, *event)
        moved = (torch.rand(num, *(1 for _ in event)) < 0.5).expand_as(anywhere)
        belief = Belief(torch.where(moved, anywhere, belief.location), belief.spread)
    parameters = {name: _draw(cost, name, num, everywhere) for name in cost.parameters}
    return Situations(measurement, person, parameters, belief)


def _uniform(num: int, bounds: tuple[float, float]) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(num)


def _draw(cost: ActorCost, name: str, num: int, everywhere: bool) -> Tensor:
    """Values (num,) of one of the cost's parameters, inside its range."""
    low, high = cost.training_box[name]
    values = cost.parameters[name].sample((num,)).float().reshape(num)
    for _ in range(100):
        outside = (values < low) | (values > high)
        if not bool(outside.any()):
            break
        values = torch.where(outside, cost.parameters[name].sample((num,)).float().reshape(num), values)
    values = values.clamp(low, high)
    if not everywhere:
        return values
    share = torch.rand(num)
    spread_out = low * (high / low) ** share if low > 0 else low + (high - low) * share
    return torch.where(torch.rand(num) < 0.5, spread_out, values)
