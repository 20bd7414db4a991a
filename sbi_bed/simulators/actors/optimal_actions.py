r"""Optimal actions, a* = argmin_a E_{s|m} E_{r|a} ℓ(r, s): in closed form, as a root, or by numerical search.

The numerical minimiser takes any cost, kinks and jumps included, and looks for the global minimum:

1. expected costs of actions all along the coordinate, denser near the belief's location, by `expected_cost`;
2. about the best of them the inner expectation g(r) = E_{s|m} ℓ(r, s) on a fine lattice of responses, once;
3. L(a) = Σ_j p(r_j | a) g(r_j), smooth in a whatever ℓ is, is searched by lattices of actions that zoom in, and the last
   three points by a parabola.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .cost import ActorCost
from .expected_cost import check_expected_cost_is_finite, evaluate_cost, expected_cost, noise_lattice
from .perception import Belief, LogNormalPerception, Perception, as_parameter

__all__ = ["OptimalActor", "minimise_expected_cost", "optimal_action"]

_POINTS_AT_A_TIME = 2**21  # evaluations of a cost
# by number of axes: actions scanned, nodes of the scan, nodes of responses and of states, actions of a zoom, zooms
_SIZES = {1: (121, 14, 257, 128, 17, 6), 2: (21, 8, 45, 20, 7, 8)}
_FARTHEST = 6.0  # how far from the belief's location actions are looked for, where coordinates are logarithms


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
        ValueError: If their dimensions differ, or the expected cost is infinite.

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
        check_expected_cost_is_finite(self.cost, self.perception)

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
    measurement = torch.as_tensor(measurement)
    belief, sigma_r, parameters = as_belief(
        cost, perception, measurement, sigma, sigma_0, mu_0, sigma_r, cost_parameters, torch.float64
    )
    action = cost.closed_form(perception, belief, sigma_r, **parameters)
    if action is None:
        action = minimise_expected_cost(cost, perception, belief, sigma_r, parameters)
    return action.to(measurement.dtype if measurement.is_floating_point() else torch.get_default_dtype())


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
    spreads = [as_parameter(value, measurement).to(dtype) for value in (sigma, sigma_0, sigma_r)]
    for name, value in zip(("sigma", "sigma_0", "sigma_r"), spreads, strict=True):
        if value.numel() and not bool((value > 0).all()):
            raise ValueError(f"{name} must be positive, got {value[~(value > 0)].flatten()[0].item():.6g}.")
    mu_0 = as_parameter(mu_0, measurement).to(dtype)
    parameters = {name: as_parameter(value, measurement).to(dtype) for name, value in cost_parameters.items()}
    return perception.belief(measurement, spreads[0], spreads[1], mu_0), spreads[2], parameters


@torch.no_grad()
def minimise_expected_cost(
    cost: ActorCost, perception: Perception, belief: Belief, sigma_r: Tensor, parameters: Mapping[str, Tensor]
) -> Tensor:
    """Actions (...) or (..., D) of least expected cost, for any cost, by quadrature and search in float64.

    Args:
        cost: What responses cost.
        perception: Noise of states and responses.
        belief: Locations and spreads.
        sigma_r: Spread of responses, (...).
        parameters: Parameters of the cost, (...), all broadcasting.

    Example:
        >>> from sbi_bed.simulators import LogNormalPerception, QuadraticCost
        >>> from sbi_bed.simulators.actors.perception import Belief
        >>> belief, sigma_r = Belief(torch.tensor(0.7), torch.tensor(0.3)), torch.tensor(0.2)
        >>> round(float(minimise_expected_cost(QuadraticCost(), LogNormalPerception(), belief, sigma_r, {})), 5)
        1.98377
    """
    dim = perception.action_dim
    location = belief.location.double()
    shape = torch.broadcast_shapes(
        location.shape[: location.ndim - (dim > 1)],
        *(value.shape for value in (belief.spread, sigma_r, *parameters.values())),
    )

    def flat(value: Tensor) -> Tensor:
        return value.double().expand(shape).reshape(-1)

    event = () if dim == 1 else (dim,)
    location = location.expand((*shape, *event)).reshape((-1, *event))
    spread, noise = flat(belief.spread), flat(sigma_r)
    rest = {name: flat(value) for name, value in parameters.items()}
    scanned, nodes, responses, states, *_ = _SIZES[dim]
    step = max(1, _POINTS_AT_A_TIME // max((scanned * nodes**2) ** dim, (responses * states) ** dim))
    parts = []
    for i in range(0, len(noise), step):
        rows = slice(i, i + step)
        chunk = Belief(location[rows], spread[rows])
        parts.append(_minimise(cost, perception, chunk, noise[rows], {n: v[rows] for n, v in rest.items()}))
    x_action = torch.cat(parts) if parts else location
    return perception.from_coordinate(x_action.reshape((*shape, *event)))


def _minimise(
    cost: ActorCost, perception: Perception, belief: Belief, sigma_r: Tensor, parameters: dict[str, Tensor]
) -> Tensor:
    """Coordinates (N,) or (N, D) of best actions, for N beliefs."""
    scanned, nodes, responses, states, zoomed, num_zooms = _SIZES[perception.action_dim]
    tau = (belief.spread.square() + sigma_r.square()).sqrt()
    best, bracket = _scan(cost, perception, belief, sigma_r, parameters, tau, scanned, nodes)
    # the inner expectation on a lattice of responses, wide enough for all actions that are to be looked at
    half = (bracket + tau).amax(-1) if bracket.ndim > 1 else bracket + tau
    reach = half + perception.noise_reach(sigma_r, 7.0)
    line = torch.linspace(-1, 1, responses).to(tau)
    offsets = _product(line, perception.action_dim)  # (R, D) or (R,)
    axes = perception.action_dim > 1
    x_response = best.unsqueeze(1) + (reach[:, None, None] * offsets if axes else reach[:, None] * offsets)
    noise, weights = noise_lattice(perception, belief.spread, states)
    state = perception.from_coordinate(belief.location.unsqueeze(1) + noise)
    wide = {name: value[:, None, None] for name, value in parameters.items()}
    costs = evaluate_cost(cost, perception.from_coordinate(x_response).unsqueeze(2), state.unsqueeze(1), wide)
    inner = torch.einsum("nrs,ns->nr", costs, weights)
    lattice, centre = _product(torch.linspace(-1, 1, zoomed).to(tau), perception.action_dim), best
    for zoom in range(num_zooms):
        x_action = centre.unsqueeze(1) + (half[:, None, None] * lattice if axes else half[:, None] * lattice)
        values = _outer(perception, x_action, x_response, inner, sigma_r)
        chosen = values.argmin(1)
        rows = torch.arange(len(chosen))
        centre = x_action[rows, chosen]
        if zoom < num_zooms - 1:
            half = half * 2.5 / (zoomed - 1)
    return centre if axes else _parabola(x_action, values, chosen)  # pyright: ignore[reportPossiblyUnboundVariable]


def _scan(
    cost: ActorCost,
    perception: Perception,
    belief: Belief,
    sigma_r: Tensor,
    parameters: dict[str, Tensor],
    tau: Tensor,
    scanned: int,
    nodes: int,
) -> tuple[Tensor, Tensor]:
    """The best of actions all along the coordinates, and the gap between it and its neighbours."""
    farthest = _FARTHEST if isinstance(perception, LogNormalPerception) else _reach_of(perception)
    farthest = torch.full_like(tau, farthest)
    rise = torch.asinh(farthest / tau)
    line = tau[:, None] * (rise[:, None] * torch.linspace(-1, 1, scanned).to(tau)).sinh()  # (N, S), about the location
    gap = (tau[:, None].square() + line.square()).sqrt() * rise[:, None] * 2 / (scanned - 1)
    dim, rows = perception.action_dim, torch.arange(len(tau))
    if dim == 1:
        x_action = belief.location[:, None] + line
        chosen = expected_cost(cost, perception, belief, x_action, sigma_r, parameters, nodes).argmin(1)
        return x_action[rows, chosen], gap[rows, chosen]
    index = torch.cartesian_prod(*[torch.arange(scanned)] * dim)
    x_action = belief.location[:, None] + torch.stack([line[:, index[:, i]] for i in range(dim)], -1)
    chosen = expected_cost(cost, perception, belief, x_action, sigma_r, parameters, nodes).argmin(1)
    return x_action[rows, chosen], torch.stack([gap[rows, index[chosen, i]] for i in range(dim)], -1)


def _outer(perception: Perception, x_action: Tensor, x_response: Tensor, inner: Tensor, sigma_r: Tensor) -> Tensor:
    """Expected costs (N, A) of actions, from the inner expectation (N, R) on a lattice of responses."""
    gap = x_response.unsqueeze(1) - x_action.unsqueeze(2)
    weights = perception.response_noise_log_prob(gap, sigma_r[:, None, None]).softmax(-1)
    return torch.einsum("nar,nr->na", weights, inner - inner.amin(1, keepdim=True))


def _parabola(x_action: Tensor, values: Tensor, chosen: Tensor) -> Tensor:
    """Where the parabola through the least of values (N, A) on an even lattice and its neighbours is least, (N,)."""
    rows, middle = torch.arange(len(chosen)), chosen.clamp(1, values.shape[1] - 2)
    left, centre, right = (values[rows, middle + i] for i in (-1, 0, 1))
    bend, step = left + right - 2 * centre, x_action[:, 1] - x_action[:, 0]
    shift = torch.where(bend > 0, 0.5 * (left - right) / bend.clamp_min(1e-300), 0.0).clamp(-1, 1)
    return x_action[rows, middle] + step * shift


def _product(line: Tensor, dim: int) -> Tensor:
    return line if dim == 1 else torch.cartesian_prod(*[line] * dim)


def _reach_of(perception: Perception) -> float:
    low, high = perception.location_range()
    return high - low


def check_pair(cost: Any, perception: Any) -> tuple[ActorCost, Perception]:
    """Check that a cost and a perception fit together; the default perception if it is None.

    Raises:
        TypeError: If `cost` is not an `ActorCost`, or `perception` not a `Perception`.
        ValueError: If their dimensions differ.
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
    if cost.action_dim not in _SIZES:
        raise ValueError(f"actions have 1 or 2 dimensions, those of {cost.name} have {cost.action_dim}.")
    return cost, perception
