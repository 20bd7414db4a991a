r"""Whether a cost makes sense to act on: named well, of finite expectation, with a minimum, and symmetric if it says so.

**Tails.** The integrand ℓ(r, s) p(r | a) p(s | m) must fall off. It is looked at along the tails of r alone and of s alone,
20, 40 and 80 standard deviations of the widest noise out: log |ℓ| less half the squared distance must fall from each to the
next. Polynomials up to the 17th degree pass under log-normal noise (beyond, float64 overflows), an exponential in r (linex)
does not. Growth that sets in farther out, or only where response and state are both extreme, is not seen.

**Poles.** Windows around the peaks of |ℓ| within 6 standard deviations of the noise are narrowed by factors of 4. With M_k
the largest |ℓ| in a window of width δ_k, M_k δ_k falls for a finite cost and for an integrable pole such as |r − s|^(−1/2),
but not for 1 / |r − s|, whose expectation is infinite.

**Minimum.** The expected cost must not be least where actions are extreme, and must not go on falling towards there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .cost import ActorCost
from .expected_cost import evaluate_cost, expected_cost
from .perception import Belief, LogNormalPerception, Perception

__all__ = ["check_cost", "check_symmetries"]

_TAIL_POINTS = (20.0, 40.0, 80.0)  # standard deviations of the widest noise
_NARROWINGS = (6, 13)  # between which M_k δ_k must fall
_PEAKS = 6
_POLE = 0.6  # share of it that may be left; of an integrable pole |r − s|^−p it is 4^(−7 (1 − p))
_FAR = (8.0, 12.0, 18.0)  # logarithms, or numbers of half ranges of locations


def check_cost(cost: ActorCost, perception: Perception) -> None:
    """Refuse a cost that no action minimises, or whose expectation is infinite under this perception's noise.

    Args:
        cost: What responses cost.
        perception: Noise of states and responses.

    Raises:
        ValueError: If the expectation is infinite, costs are NaN in the middle of the noise, or there is no minimum.

    Example:
        >>> from sbi_bed.simulators import NormalPerception
        >>> check_cost(ActorCost.from_function(lambda r, s: -r), NormalPerception())
        Traceback (most recent call last):
        ...
        ValueError: the expected cost of <lambda> has no minimum: it falls as actions go to the upper end of their range. ...
    """
    _check_tails(cost, perception)
    _check_poles(cost, perception)
    _check_minimum(cost, perception)


def _check_tails(cost: ActorCost, perception: Perception) -> None:
    centre, belief_spread, sigma_r = _widest_noise(perception)
    for parameters in _corners(cost):
        for spread, moves_response in ((sigma_r, True), (belief_spread, False)):
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
    if _is_bounded(perception):
        finite = all(bool((value < torch.inf).all()) for value in logs)
    else:
        mass = [value - 0.5 * d**2 for value, d in zip(logs, _TAIL_POINTS, strict=True)]
        # where a cost is 0 it says nothing about how it goes on
        known = [torch.where(value > math.log(1e-299), m, 0.0) for value, m in zip(logs, mass, strict=True)]
        falls = [bool((b < a).all()) for a, b in zip([torch.tensor(0.0), *known[:-1]], mass, strict=True)]
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


def _check_poles(cost: ActorCost, perception: Perception) -> None:
    """Look for poles along responses and along states, the other one being at some places within its noise."""
    centre, belief_spread, sigma_r = _widest_noise(perception)
    line = torch.linspace(-6, 6, 601, dtype=torch.float64)
    for parameters in _corners(cost, inside=True):
        for spread, moves_response in ((sigma_r, True), (belief_spread, False)):
            fixed = (centre[:, None] + spread * torch.tensor([-1.2, -0.3, 0.1, 0.9]).double()).flatten()

            def size(x: Tensor, fixed: Tensor, moves: bool = moves_response, given: Any = parameters) -> Tensor:
                one, other = _points(perception, x), _points(perception, fixed[:, None])
                value = evaluate_cost(cost, *((one, other) if moves else (other, one)), given).abs()
                return value.double().nan_to_num(nan=0.0, posinf=0.0)

            window, kept = torch.linspace(-1, 1, 33, dtype=torch.float64) + 1e-3, {}
            # from the peaks that stand out most among what larger errors cost, and from s = r, where one may be narrow
            x = spread * line + fixed[:, None]
            place = torch.cat([_peaks(x, size(x, fixed)).T.reshape(-1, 1), fixed[:, None]])
            width = torch.full((_PEAKS + 1, len(fixed)), spread / 50).double()
            width[-1] = spread * 4.0**-7
            width = width.reshape(-1, 1)
            fixed = fixed.repeat(_PEAKS + 1)
            for k in range(_NARROWINGS[1] + 1):
                there = place + width * window
                largest, which = size(there, fixed).max(-1, keepdim=True)
                place, kept[k] = there.gather(-1, which), largest * width
                width = width / 4
            early, late = (kept[k] for k in _NARROWINGS)
            if bool((late > _POLE * early).any()):
                raise ValueError(
                    f"the expected cost of {cost.name} is infinite: near some response and state it grows like 1/distance "
                    "or faster. Bound the cost there."
                )


def _peaks(x: Tensor, value: Tensor) -> Tensor:
    """Places (N, 6) of the local maxima of values (N, n) at x (N, n) that rise most above their neighbours."""
    middle, left, right = value[:, 1:-1], value[:, :-2], value[:, 2:]
    rise = torch.where((middle >= left) & (middle >= right), 2 * middle - left - right, -torch.inf)
    return x[:, 1:-1].gather(-1, rise.topk(_PEAKS, dim=-1).indices)


def _check_minimum(cost: ActorCost, perception: Perception) -> None:
    if _is_bounded(perception):
        return
    locations, belief_spread, sigma_r = _widest_noise(perception)
    half, near = (6.0, 3.0) if isinstance(perception, LogNormalPerception) else _half_range(perception)
    far = torch.tensor(_FAR, dtype=torch.float64) * half / 6
    inside = torch.linspace(-half, half, 121, dtype=torch.float64)
    line = torch.cat([-far.flip(0), inside, far])
    directions = torch.eye(perception.action_dim, dtype=torch.float64)
    for parameters in _corners(cost, inside=True):
        wide = {name: value.expand(len(locations)) for name, value in parameters.items()}
        spread, noise = (torch.full_like(locations, value) / 2 for value in (belief_spread, sigma_r))
        for direction in directions:
            if perception.action_dim == 1:
                belief, x_action = Belief(locations, spread), locations[:, None] + line
            else:
                location = locations[:, None].expand(-1, perception.action_dim)
                belief, x_action = Belief(location, spread), location[:, None] + line[:, None] * direction
            costs = expected_cost(
                cost, perception, belief, x_action, noise, wide, 14 if perception.action_dim == 1 else 6
            )
            _check_far_costs(cost, costs, line, near, 2 * (spread.square() + noise.square()).sqrt().unsqueeze(-1))


def _check_far_costs(cost: ActorCost, costs: Tensor, line: Tensor, near: float, close: Tensor) -> None:
    """Look whether expected costs (N, A) of actions at offsets (A,) fall to the end of their range."""
    around = costs[:, line.abs() <= near]
    spread = around.amax(-1) - around.amin(-1)
    least, least_around = costs.amin(-1), costs.masked_fill(line.abs() > close, torch.inf).amin(-1)
    for side, flip in (("upper", lambda x: x), ("lower", lambda x: x.flip(-1))):
        outward, distance = flip(costs), flip(line).abs()
        last, others = outward[:, -1], outward[:, :-1].amin(-1)
        below = last < others - 0.02 * spread
        beyond = outward[:, (distance >= near) & (torch.arange(len(line)) > len(line) // 2)]
        falls = (beyond.diff(dim=-1) <= 1e-13 * spread.unsqueeze(-1)).all(-1)
        level = falls & (last <= others + 1e-13 * spread) & (least_around > least + 1e-6 * spread)
        if bool(((spread > 0) & (below | level)).any()):
            raise ValueError(
                f"the expected cost of {cost.name} has no minimum: it falls as actions go to the {side} end of their range. "
                "Add what large errors cost."
            )


def check_symmetries(cost: ActorCost) -> None:
    """Check a cost's claims to be homogeneous or shift-invariant, at random responses, states and parameters.

    Raises:
        ValueError: If a claim is false.
    """
    generator = torch.Generator().manual_seed(0)
    event = () if cost.action_dim == 1 else (cost.action_dim,)
    response, state = 0.5 + 2 * torch.rand(2, 50, *event, generator=generator, dtype=torch.float64)
    for parameters in _corners(cost):
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


def _widest_noise(perception: Perception) -> tuple[Tensor, float, float]:
    """Three locations of beliefs within their range, (3,), and the largest spreads of beliefs and of responses."""
    widest = {name: perception.ranges[name][1] for name in ("sigma", "sigma_0", "sigma_r")}
    low, high = perception.location_range()
    shares = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    return low + shares * (high - low), (widest["sigma"] ** -2 + widest["sigma_0"] ** -2) ** -0.5, widest["sigma_r"]


def _is_bounded(perception: Perception) -> bool:
    """Whether coordinates are bounded, such as angles."""
    return float(perception.noise_reach(torch.tensor(1.0), _TAIL_POINTS[0])) < _TAIL_POINTS[0]


def _half_range(perception: Perception) -> tuple[float, float]:
    low, high = perception.location_range()
    return high - low, (high - low) / 4


def _corners(cost: ActorCost, inside: bool = False) -> list[dict[str, Tensor]]:
    """Parameters at both ends of all ranges (or just inside), in the middle, and some at random."""
    generator = torch.Generator().manual_seed(0)
    box, margin = cost.training_box, 0.05 if inside else 0.0
    shares: list[Any] = [torch.full((len(box),), share) for share in (margin, 0.5, 1 - margin)]
    shares += list(torch.rand(2 if inside else 5, len(box), generator=generator)) if box else []
    return [
        {
            n: torch.tensor(lo + float(u) * (hi - lo)).double()
            for u, (n, (lo, hi)) in zip(share, box.items(), strict=True)
        }
        for share in (shares if box else shares[:1])
    ]


def _points(perception: Perception, x: Tensor) -> Tensor:
    """Values at coordinates (...): (...), or (..., D) with all axes alike."""
    if perception.action_dim > 1:
        x = x.unsqueeze(-1).expand(*x.shape, perception.action_dim)
    return perception.from_coordinate(x)
