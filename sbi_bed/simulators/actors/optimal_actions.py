"""Optimal actions, a* = argmin_a E_{s|m} E_{r|a} ℓ(r, s): in closed form, as a root, or by numerical search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...utils.as_numbers import as_numbers
from .cost import ActorCost, check_names
from .cost_checks import check_cost
from .minimise import minimise_expected_cost
from .perception import Belief, LogNormalPerception, Perception, as_parameter

__all__ = ["OptimalActor", "as_belief", "check_pair", "optimal_action"]


class OptimalActor:
    """Acts optimally, without a net: called like `NeuralActor`, with which it is interchangeable.

    An action in closed form or from a root is differentiable in all arguments. One from the numerical minimiser, which
    takes milliseconds for each, is not.

    Args:
        cost: What responses cost.
        perception: How stimuli are perceived and responses made; `LogNormalPerception()` if None.

    Attributes:
        cost: The cost.
        perception: The perception.
        training_box: None, since nothing was trained.

    Raises:
        TypeError: If `cost` is not an `ActorCost`, or `perception` not a `Perception`.
        ValueError: If their dimensions differ, or the expected cost is infinite or has no minimum.

    Example:
        >>> from sbi_bed.simulators import QuadraticEffortCost
        >>> actor = OptimalActor(QuadraticEffortCost())
        >>> action = actor(torch.tensor([1.0, 2.0]), sigma=0.2, sigma_0=0.2, mu_0=1.5, sigma_r=0.1, beta=0.8)
        >>> [round(value, 4) for value in action.tolist()]
        [0.9749, 1.3787]
    """

    training_box: dict[str, tuple[float, float]] | None = None

    def __init__(self, cost: ActorCost, perception: Perception | None = None):
        self.cost, self.perception = check_pair(cost, perception)
        check_cost(self.cost, self.perception)

    def __call__(
        self, measurement: Tensor, *, sigma: Any, sigma_0: Any, mu_0: Any, sigma_r: Any, **cost_parameters: Any
    ) -> Tensor:
        """Actions for measurements (...) or (..., D) and parameters (...), all broadcasting."""
        return optimal_action(
            self.cost,
            self.perception,
            measurement,
            sigma=sigma,
            sigma_0=sigma_0,
            mu_0=mu_0,
            sigma_r=sigma_r,
            **cost_parameters,
        )

    def check_inside(self, **parameters: Any) -> None:
        """Accept everything: an optimal actor has no range of training."""


def optimal_action(
    cost: ActorCost,
    perception: Perception,
    measurement: Tensor,
    *,
    sigma: Any,
    sigma_0: Any,
    mu_0: Any,
    sigma_r: Any,
    **cost_parameters: Any,
) -> Tensor:
    """Optimal actions (...) or (..., D), computed in float64 and returned in the precision of the measurements.

    Args:
        cost: What responses cost.
        perception: How stimuli are perceived and responses made.
        measurement: Shape (...) or (..., D), in units of the stimulus.
        sigma: Spread of measurements, (...).
        sigma_0: Spread of the prior.
        mu_0: Centre of the prior.
        sigma_r: Spread of responses.
        **cost_parameters: Parameters of the cost, (...).

    Raises:
        TypeError: If the parameters given are not those of the cost.
        ValueError: If a measurement is outside the space of states, or a spread is not positive.

    Example:
        >>> from sbi_bed.simulators import AbsoluteCost, LogNormalPerception
        >>> noises = {"sigma": 0.2, "sigma_0": 0.2, "sigma_r": 0.1}
        >>> optimal_action(AbsoluteCost(), LogNormalPerception(), torch.tensor([1.0, 4.0]), mu_0=1.0, **noises)
        tensor([0.9900, 1.9801])
    """
    measurement = as_numbers(measurement, "measurement")
    belief, sigma_r, parameters = as_belief(
        cost, perception, measurement, sigma, sigma_0, mu_0, sigma_r, cost_parameters, torch.float64
    )
    action = cost.closed_form(perception, belief, sigma_r, **parameters)
    if action is None:
        action = minimise_expected_cost(cost, perception, belief, sigma_r, parameters)
    return action.to(measurement.dtype)


def as_belief(
    cost: ActorCost,
    perception: Perception,
    measurement: Tensor,
    sigma: Any,
    sigma_0: Any,
    mu_0: Any,
    sigma_r: Any,
    cost_parameters: Mapping[str, Any],
    dtype: torch.dtype,
) -> tuple[Belief, Tensor, dict[str, Tensor]]:
    """Belief, σ_r and the cost's parameters, checked, in one precision."""
    cost.check_parameters(cost_parameters)
    measurement = measurement.to(dtype)
    named = {"sigma": sigma, "sigma_0": sigma_0, "sigma_r": sigma_r}
    spreads = [as_parameter(value, measurement, name).to(dtype) for name, value in named.items()]
    for name, value in zip(named, spreads, strict=True):
        if value.numel() and not bool((value > 0).all()):
            raise ValueError(f"{name} must be positive, got {value[~(value > 0)].flatten()[0].item():.6g}.")
    mu_0 = as_parameter(mu_0, measurement, "mu_0").to(dtype)
    parameters = {name: as_parameter(value, measurement, name).to(dtype) for name, value in cost_parameters.items()}
    return perception.belief(measurement, spreads[0], spreads[1], mu_0), spreads[2], parameters


def check_pair(cost: Any, perception: Any) -> tuple[ActorCost, Perception]:
    """Check that a cost and a perception fit together; the default perception if it is None.

    Raises:
        TypeError: If `cost` is not an `ActorCost`, or `perception` not a `Perception`.
        ValueError: If their dimensions differ, or the cost has a parameter with a name of the perception's.
    """
    if not isinstance(cost, ActorCost):
        raise TypeError(f"cost must be an ActorCost (see ActorCost.from_function), got {cost!r}.")
    perception = LogNormalPerception() if perception is None else perception
    if not isinstance(perception, Perception):
        raise TypeError(f"perception must be a Perception, got {perception!r}.")
    if cost.action_dim != perception.action_dim:
        raise ValueError(
            f"{cost.name} is for responses with {cost.action_dim} dimensions, {type(perception).__name__} for "
            f"{perception.action_dim}: both must have the same number."
        )
    check_names(cost.parameters, cost.name)
    if cost.action_dim not in (1, 2):
        raise ValueError(f"actions have 1 or 2 dimensions, those of {cost.name} have {cost.action_dim}.")
    return cost, perception
