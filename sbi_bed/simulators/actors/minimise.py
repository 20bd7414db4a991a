r"""The action of least expected cost by quadrature and search, for any cost, kinks and jumps included.

Numbers are searched for in three steps:

1. Scan: expected costs of actions all along the coordinate, denser near the belief's location, by `expected_cost`.
2. Around the best of them, and around another local minimum that is nearly as good, expected costs to high precision
   (`cost_curve.py`), on even lattices of actions that move along until the least value is not at an end.
3. The best is refined by lattices that zoom in, and the last three points by a parabola.

Vectors are searched for by the scan and lattices that zoom in. If the cost depends on r − s alone, the expectation is one
over this difference, and actions are right to 10⁻³ of the noise, jumps included; else to some 10⁻² where a cost jumps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .cost import ActorCost
from .cost_curve import CostCurve, Decisions, on_cost_curves
from .expected_cost import evaluate_cost, expected_cost, noise_lattice
from .perception import Belief, LogNormalPerception, Perception

__all__ = ["Minima", "find_minima", "minimise_expected_cost"]

_POINTS_AT_A_TIME = 2**21  # evaluations of a cost
_SCANNED, _SCAN_NODES = {1: 121, 2: 21}, {1: 14, 2: 8}  # by number of axes
_FARTHEST = 6.0  # how far from the belief's location actions are looked for, where coordinates are logarithms
_NEAR = 2.5  # τ: how far around the location actions are looked at closely
_LINE, _ZOOM, _ZOOMS, _MOVES = 65, 17, 6, 8
_NEARLY_AS_GOOD = 0.5  # share of the range of expected costs within 3 τ
_PLANE = {"responses": 45, "states": 20, "zoomed": 7, "num_zooms": 11, "cells": 120, "in_a_cell": 10}  # for vectors


@dataclass(frozen=True)
class Minima:
    """The two best actions of N decisions, and what errors cost; tensors (N,).

    Attributes:
        x_action: Coordinate of the best action.
        cost: Its expected cost.
        x_other: Coordinate of the next best local minimum; NaN where there is none that is nearly as good.
        other_cost: Its expected cost; infinite where there is none.
        rise: Mean rise of the expected cost from the best action to those τ = √(σ_p² + σ_r²) away on both sides.
    """

    x_action: Tensor
    cost: Tensor
    x_other: Tensor
    other_cost: Tensor
    rise: Tensor


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
    if dim == 1:
        x_action = find_minima(Decisions(cost, perception, Belief(location, spread), noise, rest)).x_action
    else:
        x_action = _in_the_plane(cost, perception, Belief(location, spread), noise, rest)
    return perception.from_coordinate(x_action.reshape((*shape, *event)))


@torch.no_grad()
def find_minima(decisions: Decisions) -> Minima:
    """The best action of each of N decisions, and the next best local minimum.

    Args:
        decisions: Decisions about numbers.

    Example:
        >>> from sbi_bed.simulators import ActorCost, NormalPerception
        >>> two_wells = ActorCost.from_function(lambda r, s: ((r - s).abs() - 2).square())
        >>> belief = Belief(torch.zeros(1).double(), torch.full((1,), 0.1).double())
        >>> minima = find_minima(Decisions(two_wells, NormalPerception(), belief, belief.spread, {}))
        >>> bool((minima.other_cost - minima.cost).abs() < 1e-9), round(float(minima.x_action.abs()), 4)
        (True, 2.0)
    """
    if not len(decisions):
        return Minima(*[decisions.sigma_r] * 5)
    tau = decisions.tau
    centre, half, other, other_half = _scan(decisions)
    best, inside = _search(decisions, centre, half)
    tried = ~torch.isnan(other)
    if bool(tried.any()):
        found, _ = _search(decisions[tried], other[tried], other_half[tried])
        apart = decisions.perception.wrap(found[:, 0] - best[tried, 0]).abs() > 0.05 * tau[tried]
        second = torch.full_like(best, torch.inf)
        second[tried] = torch.where(apart.unsqueeze(-1), found, torch.inf)
        inside = torch.where((second[:, 1] < inside[:, 1]).unsqueeze(-1), second, inside)
    swap = (inside[:, 1] < best[:, 1]).unsqueeze(-1)
    best, inside = torch.where(swap, inside, best), torch.where(swap, best, inside)

    def rises(curve: CostCurve, rows: Tensor) -> Tensor:
        steps = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) * tau[rows].unsqueeze(-1)
        below, at, above = curve(best[rows, :1] + steps).unbind(-1)
        return (below + above) / 2 - at

    x_other = torch.where(torch.isfinite(inside[:, 1]), inside[:, 0], torch.nan)
    rise = on_cost_curves(decisions, best[:, 0], tau, rises)
    return Minima(best[:, 0], best[:, 1], x_other, inside[:, 1], rise)


def _search(decisions: Decisions, centre: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Action and expected cost of the best minimum near `centre`, and of the next best one there, (N, 2) each."""
    line = torch.linspace(-1, 1, _LINE, dtype=torch.float64)

    def look(curve: CostCurve, rows: Tensor) -> Tensor:
        x = centre[rows].unsqueeze(-1) + half[rows].unsqueeze(-1) * line
        values = curve(x)
        inner = curve.inner.amax(-1) - curve.inner.amin(-1)
        chosen, flat = _lowest(values, 1e-10 * (values.amax(-1) - values.amin(-1)) + 1e-13 * inner)
        step, each = half[rows] * 2 / (_LINE - 1), torch.arange(len(x))
        best = _zoom(curve, x[each, chosen], step)
        best = torch.where(flat.unsqueeze(-1), torch.stack([x[each, chosen], values[each, chosen]], -1), best)
        lower = (values[:, 1:-1] < values[:, :-2]) & (values[:, 1:-1] < values[:, 2:])
        index = torch.arange(1, _LINE - 1)
        others = values[:, 1:-1].masked_fill(~lower | ((index - chosen.unsqueeze(-1)).abs() <= 1), torch.inf)
        least, place = others.min(-1)
        other = _zoom(curve, x[each, place + 1], step)
        other = torch.where(torch.isfinite(least).unsqueeze(-1), other, torch.inf)
        at_end = ((chosen == 0) | (chosen == _LINE - 1)).double()
        return torch.cat([best, other, at_end.unsqueeze(-1), x.gather(-1, chosen.unsqueeze(-1))], -1)

    found = on_cost_curves(decisions, centre, half, look)
    for _ in range(_MOVES):
        rows = (found[:, 4] > 0).nonzero().squeeze(-1)
        if not len(rows):
            break
        centre = centre.index_copy(0, rows, found[rows, 5])
        found = found.index_copy(
            0, rows, on_cost_curves(decisions[rows], centre[rows], half[rows], lambda c, k, rows=rows: look(c, rows[k]))
        )
    return found[:, :2], found[:, 2:4]


def _zoom(curve: CostCurve, centre: Tensor, half: Tensor) -> Tensor:
    """The minimum within `half` of `centre` and its expected cost, (N, 2)."""
    lattice, rows = torch.linspace(-1, 1, _ZOOM, dtype=torch.float64), torch.arange(len(centre))
    for zoom in range(_ZOOMS):
        x_action = centre.unsqueeze(-1) + half.unsqueeze(-1) * lattice
        values = curve(x_action)
        chosen, _ = _lowest(values, 1e-13 * (values.amax(-1) - values.amin(-1)))
        centre = x_action[rows, chosen]
        if zoom < _ZOOMS - 1:
            half = half * 2.5 / (_ZOOM - 1)
    best = _parabola(x_action, values, chosen)  # pyright: ignore[reportPossiblyUnboundVariable]
    return torch.stack([best, curve(best.unsqueeze(-1)).squeeze(-1)], -1)


def _lowest(values: Tensor, tolerance: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the least of values (N, A), the middle one of ties within a tolerance; whether more than five tie; (N,)."""
    tied, index = values <= (values.amin(-1) + tolerance).unsqueeze(-1), torch.arange(values.shape[-1])
    num = tied.sum(-1)
    middle = (tied * index).sum(-1) / num
    return (index - middle.unsqueeze(-1)).abs().masked_fill(~tied, torch.inf).argmin(-1), num > 5


def _scan(decisions: Decisions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where to look closely, and how far around it: for the best action and for another one, NaN if there is none; (N,)."""
    parts, step = [], max(1, _POINTS_AT_A_TIME // (_SCANNED[1] * _SCAN_NODES[1] ** 2))
    for rows in torch.arange(len(decisions)).split(step):
        parts.append(_scan_some(decisions[rows]))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))  # pyright: ignore[reportReturnType]


def _scan_some(decisions: Decisions) -> tuple[Tensor, ...]:
    perception, belief, tau = decisions.perception, decisions.belief, decisions.tau
    line, gap = _scanned_line(perception, tau, _SCANNED[1])
    values = expected_cost(
        decisions.cost, perception, belief, belief.location[:, None] + line, decisions.sigma_r, decisions.parameters,
        _SCAN_NODES[1],
    )  # fmt: skip
    near = line.abs() <= 3 * tau[:, None]
    least = values.amin(-1, keepdim=True)
    spread = values.masked_fill(~near, -torch.inf).amax(-1, keepdim=True) - least
    tied = values <= least + 1e-9 * spread.abs()  # of ties the nearest one
    chosen = line.abs().masked_fill(~tied, torch.inf).argmin(-1, keepdim=True)
    offset = line.gather(-1, chosen)
    close = offset.abs() < _NEAR * tau[:, None]
    offset = torch.where(close, 0.0, offset)
    half = torch.where(close, _NEAR * tau[:, None], gap.gather(-1, chosen) + 1.5 * tau[:, None])
    lower = (values[:, 1:-1] < values[:, :-2]) & (values[:, 1:-1] < values[:, 2:])
    outside = (line[:, 1:-1] - offset).abs() > half
    good = values[:, 1:-1] < least + _NEARLY_AS_GOOD * spread
    others, place = values[:, 1:-1].masked_fill(~(lower & outside & good), torch.inf).min(-1, keepdim=True)
    other = torch.where(torch.isfinite(others), line.gather(-1, place + 1), torch.nan)
    other_half = gap.gather(-1, place + 1) + 0.5 * tau[:, None]
    location = belief.location[:, None]
    return tuple(x.squeeze(-1) for x in (location + offset, half, location + other, other_half))


def _scanned_line(perception: Perception, tau: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Offsets (N, num) from the belief's location, denser near it, and the gaps between them."""
    if isinstance(perception, LogNormalPerception):
        farthest = torch.full_like(tau, _FARTHEST)
    else:
        low, high = perception.location_range()
        farthest = torch.full_like(tau, high - low)
    rise = torch.asinh(farthest / tau)
    line = tau[:, None] * (rise[:, None] * torch.linspace(-1, 1, num).to(tau)).sinh()
    return line, (tau[:, None].square() + line.square()).sqrt() * rise[:, None] * 2 / (num - 1)


def _in_the_plane(
    cost: ActorCost, perception: Perception, belief: Belief, sigma_r: Tensor, parameters: dict[str, Tensor]
) -> Tensor:
    """Coordinates (N, D) of best actions, for N beliefs."""
    dim, scanned, nodes = perception.action_dim, _SCANNED[2], _SCAN_NODES[2]
    looked_at = (
        _PLANE["cells"] * _PLANE["in_a_cell"] if cost.shift_invariant else _PLANE["responses"] * _PLANE["states"]
    )
    step = max(1, _POINTS_AT_A_TIME // max(scanned * nodes**2, looked_at) ** dim)
    parts = []
    for i in range(0, len(sigma_r), step):
        rows = slice(i, i + step)
        chunk = Belief(belief.location[rows], belief.spread[rows])
        values = {name: value[rows] for name, value in parameters.items()}
        parts.append(_some_in_the_plane(cost, perception, chunk, sigma_r[rows], values))
    return torch.cat(parts) if parts else belief.location


def _some_in_the_plane(
    cost: ActorCost, perception: Perception, belief: Belief, sigma_r: Tensor, parameters: dict[str, Tensor]
) -> Tensor:
    tau, dim = (belief.spread.square() + sigma_r.square()).sqrt(), perception.action_dim
    rows = torch.arange(len(tau))
    line, gap = _scanned_line(perception, tau, _SCANNED[2])
    index = torch.cartesian_prod(*[torch.arange(_SCANNED[2])] * dim)
    x_action = belief.location[:, None] + torch.stack([line[:, index[:, i]] for i in range(dim)], -1)
    chosen = expected_cost(cost, perception, belief, x_action, sigma_r, parameters, _SCAN_NODES[2]).argmin(1)
    centre = x_action[rows, chosen]
    half = (torch.stack([gap[rows, index[chosen, i]] for i in range(dim)], -1) + tau[:, None]).amax(-1)
    of_cost = _of_differences if cost.shift_invariant else _of_responses
    points, values, log_prob = of_cost(cost, perception, belief, sigma_r, parameters, centre, half)
    lattice = torch.cartesian_prod(*[torch.linspace(-1, 1, _PLANE["zoomed"]).to(tau)] * dim)
    for _ in range(_PLANE["num_zooms"]):
        x_action = centre.unsqueeze(1) + half[:, None, None] * lattice
        weights = log_prob(points.unsqueeze(1) - x_action.unsqueeze(2)).softmax(-1)
        centre = x_action[rows, torch.einsum("nar,nr->na", weights, values).argmin(1)]
        half = half * 2.5 / (_PLANE["zoomed"] - 1)
    return centre


def _of_responses(
    cost: ActorCost,
    perception: Perception,
    belief: Belief,
    sigma_r: Tensor,
    parameters: dict[str, Tensor],
    centre: Tensor,
    half: Tensor,
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Responses (N, R, D) that actions within `half` (N,) of `centre` (N, D) lead to, what they cost on average over states
    (N, R), and the log density of offsets (N, A, R, D) from actions."""
    dim = perception.action_dim
    reach = half + perception.noise_reach(sigma_r, 7.0)
    offsets = torch.cartesian_prod(*[torch.linspace(-1, 1, _PLANE["responses"]).to(reach)] * dim)
    x_response = centre.unsqueeze(1) + reach[:, None, None] * offsets
    noise, weights = noise_lattice(perception, belief.spread, _PLANE["states"])
    state = perception.from_coordinate(belief.location.unsqueeze(1) + noise)
    wide = {name: value[:, None, None] for name, value in parameters.items()}
    costs = evaluate_cost(cost, perception.from_coordinate(x_response).unsqueeze(2), state.unsqueeze(1), wide)
    inner = torch.einsum("nrs,ns->nr", costs, weights)
    return x_response, inner, lambda offset: perception.response_noise_log_prob(offset, sigma_r[:, None, None])


def _of_differences(
    cost: ActorCost,
    perception: Perception,
    belief: Belief,
    sigma_r: Tensor,
    parameters: dict[str, Tensor],
    centre: Tensor,
    half: Tensor,
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """The same where costs depend on r − s alone, which is normal, r − s ~ N(a − μ_p, σ_p² I + σ_r² MᵀM): mean costs of
    cells of differences, each by many points, so that jumps hardly matter. Points are places of cells beside μ_p."""
    mixing = perception.correlate(torch.eye(2).to(sigma_r))
    covariance = belief.spread[:, None, None].square() * torch.eye(2).to(sigma_r) + sigma_r[:, None, None].square() * (
        mixing.T @ mixing
    )
    widths = torch.linalg.eigvalsh(covariance)
    reach = half + 5 * widths[:, -1].sqrt()
    cells, fine = _PLANE["cells"], _PLANE["in_a_cell"]
    # A mean over cells of width h is a convolution with their shape, whose variance the density gives back.
    of_cells = ((2 * reach / cells).square() / 12).minimum(0.5 * widths[:, 0])
    factor = torch.linalg.cholesky(covariance - of_cells[:, None, None] * torch.eye(2).to(sigma_r))
    axes = [(2 * torch.arange(num).to(reach) + 1) / num - 1 for num in (cells, cells * fine)]
    offset = (centre - belief.location).unsqueeze(1)
    coarse, all_points = (offset + reach[:, None, None] * torch.cartesian_prod(axis, axis) for axis in axes)
    wide = {name: value[:, None] for name, value in parameters.items()}
    costs = evaluate_cost(cost, all_points, torch.zeros_like(all_points), wide)
    costs = costs.reshape(-1, cells, fine, cells, fine).mean((2, 4)).flatten(1)

    def log_prob(offset: Tensor) -> Tensor:
        first, second = offset.unbind(-1)
        u = first / factor[:, None, None, 0, 0]
        v = (second - factor[:, None, None, 1, 0] * u) / factor[:, None, None, 1, 1]
        return -0.5 * (u.square() + v.square())

    return belief.location.unsqueeze(1) + coarse, costs, log_prob


def _parabola(x_action: Tensor, values: Tensor, chosen: Tensor) -> Tensor:
    """Where the parabola through the least of values (N, A) on an even lattice and its neighbours is least, (N,)."""
    rows, middle = torch.arange(len(chosen)), chosen.clamp(1, values.shape[1] - 2)
    left, centre, right = (values[rows, middle + i] for i in (-1, 0, 1))
    bend, step = left + right - 2 * centre, x_action[:, 1] - x_action[:, 0]
    shift = torch.where(bend > 0, 0.5 * (left - right) / bend.clamp_min(1e-300), 0.0).clamp(-1, 1)
    return x_action[rows, middle] + step * shift
