r"""The expected cost of an action, E_{s|m} E_{r|a} ℓ(r, s), by quadrature.

Noise of the state and of the response are each put on a lattice in the perception's coordinates, evenly spaced and weighted
with their density. That is the trapezoidal rule, which for smooth integrands that die away converges exponentially: with
nodes one standard deviation apart its error is e^{−2π²}. With kinks or jumps in the cost, it falls with the square of the
spacing, or in proportion to it. A lattice that is shifted at random is right on average for them, too.

Also here: a test of whether the expectation is finite at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .cost import ActorCost
from .perception import Belief, Perception

__all__ = ["check_expected_cost_is_finite", "check_symmetries", "expected_cost", "noise_lattice"]

_REACH = 6.5  # standard deviations
_SPACING = 1.1  # standard deviations, at most: few nodes do not reach as far
_TAIL_POINTS = (20.0, 40.0, 80.0)  # standard deviations of the widest noise


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


def check_expected_cost_is_finite(cost: ActorCost, perception: Perception, seed: int = 0) -> None:
    """Refuse a cost whose expectation is infinite under this perception's noise.

    The integrand ℓ(r, s) p(r | a) p(s | m) must fall off. It is looked at along the tails of r alone and of s alone, both
    ways, 20, 40 and 80 standard deviations of the widest noise out, at several parameters: log |ℓ| less half the squared
    distance must fall from each to the next. Polynomials up to the 17th degree pass under log-normal noise (beyond, float64
    overflows), an exponential in r (linex) does not; under normal noise an exponential passes. What the test cannot see is
    growth that sets in farther out still, or only where response and state are both extreme.

    Raises:
        ValueError: If the expectation is infinite, or costs are NaN in the middle of the noise.
    """
    widest = {name: perception.ranges[name][1] for name in ("sigma", "sigma_0", "sigma_r")}
    belief_spread = (widest["sigma"] ** -2 + widest["sigma_0"] ** -2) ** -0.5
    low, high = perception.location_range()
    centre = torch.tensor(
        [low + 0.1 * (high - low), 0.5 * (low + high), high - 0.1 * (high - low)], dtype=torch.float64
    )
    for parameters in _corners(cost, seed):
        for spread, moves_response in ((widest["sigma_r"], True), (belief_spread, False)):
            for side in (-1.0, 1.0):
                logs = []
                for distance in (0.5, *_TAIL_POINTS):
                    offset = side * perception.noise_reach(torch.tensor(spread, dtype=torch.float64), distance)
                    far, near = _points(perception, centre + offset), _points(perception, centre)
                    value = evaluate_cost(cost, *((far, near) if moves_response else (near, far)), parameters)
                    if distance < 1 and not bool(torch.isfinite(value).all()):
                        raise ValueError(f"{cost.name} is not finite at ordinary responses and states ({parameters}).")
                    logs.append(value.double().abs().clamp_min(1e-300).log().nan_to_num(nan=torch.inf))
                _check_tail(cost, perception, logs[1:], moves_response, side)


def _check_tail(cost: ActorCost, perception: Perception, logs: list[Tensor], response: bool, side: float) -> None:
    if float(perception.noise_reach(torch.tensor(1.0), _TAIL_POINTS[0])) < _TAIL_POINTS[0]:
        finite = all(bool((value < torch.inf).all()) for value in logs)  # bounded coordinates, such as angles
    else:
        mass = [value - 0.5 * d**2 for value, d in zip(logs, _TAIL_POINTS, strict=True)]
        falls = [bool((b < a).all()) for a, b in zip([torch.tensor(0.0), *mass[:-1]], mass, strict=True)]
        finite = all(falls) and bool(torch.isfinite(mass[-1]).all())
    if not finite:
        what = (
            f"{'responses' if response else 'states'} go to the {'upper' if side > 0 else 'lower'} end of their range"
        )
        raise ValueError(
            f"the expected cost of {cost.name} is infinite: where {what} it grows faster than the density of "
            f"{type(perception).__name__} falls. Bound the cost, or let it grow like a power (linex, for one, needs "
            "NormalPerception)."
        )


def _corners(cost: ActorCost, seed: int) -> list[dict[str, Tensor]]:
    """Parameters at both ends of all ranges, in the middle, and some at random."""
    generator = torch.Generator().manual_seed(seed)
    box = cost.training_box
    shares: list[Any] = [torch.full((len(box),), share) for share in (0.0, 0.5, 1.0)]
    shares += list(torch.rand(5, len(box), generator=generator)) if box else []
    return [
        {
            n: torch.tensor(lo + float(u) * (hi - lo)).double()
            for u, (n, (lo, hi)) in zip(share, box.items(), strict=True)
        }
        for share in (shares if box else shares[:1])
    ]


def _points(perception: Perception, x: Tensor) -> Tensor:
    """Values at coordinates (N,): (N,), or (N, D) with all axes alike."""
    if perception.action_dim > 1:
        x = x.unsqueeze(-1).expand(*x.shape, perception.action_dim)
    return perception.from_coordinate(x)


def check_symmetries(cost: ActorCost, seed: int = 0) -> None:
    """Check a cost's claims to be homogeneous or shift-invariant, at random responses, states and parameters.

    Raises:
        ValueError: If a claim is false.
    """
    generator = torch.Generator().manual_seed(seed)
    event = () if cost.action_dim == 1 else (cost.action_dim,)
    response, state = 0.5 + 2 * torch.rand(2, 50, *event, generator=generator, dtype=torch.float64)
    for parameters in _corners(cost, seed):
        here, scaled, moved = (
            evaluate_cost(cost, f(response), f(state), parameters)
            for f in (lambda x: x, lambda x: 2 * x, lambda x: x + 2.5)
        )
        some = here.abs() > 1e-9
        ratio = scaled[some] / here[some]
        if cost.homogeneous and len(ratio) and not bool(torch.allclose(ratio, ratio[0], rtol=1e-6, atol=0)):
            raise ValueError(
                f"{cost.name} claims to be homogeneous, but from (r, s) to (2r, 2s) costs grow by factors from "
                f"{float(ratio.min()):.4g} to {float(ratio.max()):.4g}, not by a single factor: leave homogeneous=False."
            )
        if cost.shift_invariant and not bool(torch.allclose(here, moved, rtol=1e-6, atol=1e-9)):
            raise ValueError(
                f"{cost.name} claims to be shift_invariant, but ℓ(r + c, s + c) differs from ℓ(r, s): leave "
                "shift_invariant=False."
            )
