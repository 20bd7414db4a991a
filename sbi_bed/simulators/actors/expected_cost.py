r"""The expected cost of an action, E_{s|m} E_{r|a} ℓ(r, s), by quadrature.

Noise of the state and of the response are each put on a lattice in the perception's coordinates, evenly spaced and weighted
with their density. That is the trapezoidal rule, which for smooth integrands that die away converges exponentially: with
nodes one standard deviation apart its error is e^{−2π²}. With kinks or jumps in the cost, it falls with the square of the
spacing, or in proportion to it. A lattice that is shifted at random is right on average for them, too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .cost import ActorCost
from .perception import Belief, Perception

__all__ = ["evaluate_cost", "expected_cost", "noise_lattice"]

_REACH = 6.5  # standard deviations
_SPACING = 1.1  # standard deviations, at most: few nodes do not reach as far


def noise_lattice(
    perception: Perception, spread: Tensor, num: int, shift: Tensor | float = 0.5, response: bool = False
) -> tuple[Tensor, Tensor]:
    """Nodes of noise and their weights, which sum to one.

    Args:
        perception: The noise's distribution.
        spread: Its spread, (...).
        num: Nodes along each axis; n = num^D in all.
        shift: Where the lattice begins between two nodes, as a share of the spacing: a number, or (..., D).
        response: Whether this is the noise of responses.

    Returns:
        Offsets (..., n), or (..., n, D) where D > 1, and weights (..., n).

    Example:
        >>> from sbi_bed.simulators import NormalPerception
        >>> offsets, weights = noise_lattice(NormalPerception(), torch.tensor(2.0), 13)
        >>> round(float((weights * offsets**2).sum()), 5)
        4.0
    """
    dim = perception.action_dim
    shift = torch.as_tensor(shift, dtype=spread.dtype, device=spread.device)
    shift = shift.expand(*shift.shape[:-1], dim) if shift.ndim else shift.expand(dim)
    reach = perception.noise_reach(spread, min(_REACH, 0.5 * _SPACING * num))[..., None, None]
    steps = torch.arange(num, dtype=spread.dtype, device=spread.device)[:, None] + shift.unsqueeze(-2)
    axes = reach * (2 * steps / num - 1)  # (..., num, D)
    if dim == 1:
        offsets = axes.squeeze(-1)
    else:
        index = torch.cartesian_prod(*[torch.arange(num, device=spread.device)] * dim)
        offsets = torch.stack([axes[..., index[:, i], i] for i in range(dim)], -1)
        if response:
            offsets = perception.correlate(offsets)
    log_prob = perception.response_noise_log_prob if response else perception.noise_log_prob
    return offsets, log_prob(offsets, spread.unsqueeze(-1)).softmax(-1)


def expected_cost(
    cost: ActorCost,
    perception: Perception,
    belief: Belief,
    x_action: Tensor,
    sigma_r: Tensor,
    parameters: Mapping[str, Tensor],
    num: int = 13,
    shift: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Expected costs (..., A) of A actions for each belief (...).

    Args:
        cost: The cost.
        perception: The noise of states and responses.
        belief: Locations (...) or (..., D), spreads (...).
        x_action: Coordinates of actions, (..., A) or (..., A, D).
        sigma_r: Spread of responses, (...).
        parameters: Of the cost, (...).
        num: Nodes along each axis.
        shift: Shifts of the lattices of states and of responses, (..., D) each; none if None.
    """
    axes = perception.action_dim > 1  # whether there is a last dimension D
    shifts = (0.5, 0.5) if shift is None else shift
    states, state_weights = noise_lattice(perception, belief.spread, num, shifts[0])
    responses, response_weights = noise_lattice(perception, sigma_r, num, shifts[1], response=True)
    x_state = belief.location.unsqueeze(-2 if axes else -1) + states  # (..., n, D)
    x_response = x_action.unsqueeze(-2 if axes else -1) + responses.unsqueeze(-3 if axes else -2)  # (..., A, n, D)
    state = perception.from_coordinate(x_state)
    state = state[..., None, None, :, :] if axes else state[..., None, None, :]
    response = perception.from_coordinate(x_response).unsqueeze(-2 if axes else -1)
    wide = {name: value[..., None, None, None] for name, value in parameters.items()}
    costs = evaluate_cost(cost, response, state, wide)  # (..., A, n, n)
    inner = (costs * state_weights[..., None, None, :]).sum(-1)
    return (inner * response_weights.unsqueeze(-2)).sum(-1)


def evaluate_cost(cost: ActorCost, response: Tensor, state: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Costs (...), in the precision of the states, checked to have the shape that responses and states broadcast to.

    Raises:
        TypeError: If the cost returns something else than a tensor.
        ValueError: If it returns another shape.
    """
    value = cost(response, state, **parameters)
    if not isinstance(value, Tensor):
        raise TypeError(f"{cost.name} must return a tensor of costs, got {type(value).__name__}.")
    shapes = [response.shape, state.shape]
    if cost.action_dim > 1:
        shapes = [shape[:-1] for shape in shapes]
    expected = torch.broadcast_shapes(*shapes, *(p.shape for p in parameters.values()))
    try:
        return value.to(state).expand(expected)
    except RuntimeError as err:
        raise ValueError(
            f"{cost.name} returned shape {tuple(value.shape)} for responses {tuple(response.shape)} and states "
            f"{tuple(state.shape)}; it must return one cost for each response and state, {tuple(expected)}."
        ) from err
