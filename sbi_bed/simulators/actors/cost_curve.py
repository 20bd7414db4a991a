r"""Expected costs of actions that are numbers, to high precision also where a cost jumps.

For a belief (μ_p, σ_p) and motor noise σ_r, in the perception's coordinates,

    g(x_r) = ∫ ℓ(r, s) p(x_s | μ_p, σ_p) dx_s,      L(x_a) = ∫ g(x_r) p(x_r | x_a, σ_r) dx_r.

Both integrals are trapezoidal sums on even lattices, which for smooth costs are exact up to rounding. A jump of height J at
x* adds J (1 − F(x*)) to the integral, where F is the noise's distribution function, but J Σ_{x_k > x*} w_k to the sum.
Bisection finds x* and J, and the difference is added to the sum. An interval is searched for a jump if its slope is far from
those of its neighbours. States near s = r are looked at down to a distance of 4⁻⁸ spreads, so that a narrow tolerance around
the state is not overlooked. Elsewhere, two jumps between the same two nodes, a tenth of a spread apart, can be overlooked.

g does not depend on the action: it is computed once, and L at any number of actions is a weighted sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .cost import ActorCost
from .expected_cost import evaluate_cost, noise_lattice
from .perception import Belief, Perception

__all__ = ["CostCurve", "Decisions", "on_cost_curves"]

_REACH = 7.0  # standard deviations of responses
_STATES, _MOST_STATES, _RESPONSES, _MOST_RESPONSES = 128, 1024, 256, 8192  # nodes
_GOLDEN = 0.5 * (math.sqrt(5) - 1)
_PROBES, _MOST_PROBES = 32, 2048  # responses at which jumps are looked for
_NEAREST = 8  # states near s = r are 4^-8, 4^-7, … 4 spreads away from it
_ASIDE = 1e-9  # of a spread: no state is exactly at s = r, where a cost may be infinite
_HALVINGS = 30
_STRANGE = 0.25  # how far a slope is from its neighbours' where there may be a jump, as a share of them
_SMALLEST = 1e-9  # jump, as a share of the range of values
_EVALUATIONS = 2**21  # of the cost, at a time


@dataclass(frozen=True)
class Decisions:
    """N decisions about an action that is a number.

    Attributes:
        cost: What responses cost.
        perception: Noise of states and responses.
        belief: Locations and spreads, (N,), float64.
        sigma_r: Spread of responses, (N,).
        parameters: Of the cost, (N,).
    """

    cost: ActorCost
    perception: Perception
    belief: Belief
    sigma_r: Tensor
    parameters: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.sigma_r)

    def __getitem__(self, rows: Tensor | slice) -> Decisions:
        belief = Belief(self.belief.location[rows], self.belief.spread[rows])
        parameters = {name: value[rows] for name, value in self.parameters.items()}
        return Decisions(self.cost, self.perception, belief, self.sigma_r[rows], parameters)

    @property
    def tau(self) -> Tensor:
        """Noise of state and response together, (N,)."""
        return (self.belief.spread.square() + self.sigma_r.square()).sqrt()


@dataclass(frozen=True)
class _Jumps:
    """Jumps of N functions: whose each is, its place and its height, (F,)."""

    row: Tensor
    place: Tensor
    height: Tensor


@dataclass(frozen=True)
class CostCurve:
    """Expected costs of N decisions as functions of the action.

    Attributes:
        decisions: The decisions.
        x_response: Even lattices of responses, (N, R), coordinates.
        inner: g there, (N, R).
        jumps: Jumps of g.
    """

    decisions: Decisions
    x_response: Tensor
    inner: Tensor
    jumps: _Jumps

    def __call__(self, x_action: Tensor) -> Tensor:
        """Expected costs (N, A) of actions with coordinates (N, A)."""
        perception, sigma_r = self.decisions.perception, self.decisions.sigma_r
        gap = self.x_response.unsqueeze(1) - x_action.unsqueeze(2)
        weights = perception.response_noise_log_prob(gap, sigma_r[:, None, None]).softmax(-1)
        lowest = self.inner.amin(1, keepdim=True)
        costs = torch.einsum("nar,nr->na", weights, self.inner - lowest) + lowest
        row, place = self.jumps.row, self.jumps.place.unsqueeze(-1)
        if not len(row):
            return costs
        beyond = (self.x_response[row] > place).to(weights)
        share = 1 - perception.noise_cdf(place - x_action[row], sigma_r[row].unsqueeze(-1))
        missing = share - torch.einsum("far,fr->fa", weights[row], beyond)
        return costs.index_add(0, row, self.jumps.height.unsqueeze(-1) * missing)


def on_cost_curves(
    decisions: Decisions, centre: Tensor, half: Tensor, use: Callable[[CostCurve, Tensor], Tensor]
) -> Tensor:
    """What `use` makes of the expected costs of actions within `half` (N,) of `centre` (N,), (N, ...).

    Args:
        decisions: N decisions.
        centre: Coordinates of actions.
        half: Largest distances from them.
        use: Callable (curve of n decisions, their rows (n,)) -> (n, ...).

    Example:
        >>> from sbi_bed.simulators import ActorCost, NormalPerception
        >>> miss = ActorCost.from_function(lambda r, s: (r - s).abs() > 0.5)
        >>> zero, one = torch.zeros(1).double(), torch.ones(1).double()
        >>> decisions = Decisions(miss, NormalPerception(), Belief(zero, one), one, {})
        >>> at_zero = on_cost_curves(decisions, zero, one, lambda curve, rows: curve(zero.unsqueeze(-1)))
        >>> round(float(at_zero), 7)  # 2 Φ(−½ / √2)
        0.7236736
    """
    if not len(decisions):
        raise ValueError("there are no decisions.")
    spread, sigma_r = decisions.belief.spread, decisions.sigma_r
    reach = half + decisions.perception.noise_reach(sigma_r, _REACH)
    jump = _jumps_in_state(decisions, centre, reach)
    states = _power_of_two(16 * spread / sigma_r, _STATES, _MOST_STATES)
    # an expectation over a jump is as blurred as the belief
    wanted = 2 * reach / torch.where(jump, torch.minimum(0.4 * sigma_r, 0.5 * spread), 0.4 * sigma_r)
    responses = 1 + _power_of_two(wanted, _RESPONSES, _MOST_RESPONSES)
    reach = _incommensurable(reach, responses, decisions.perception.noise_reach(spread, 6.5) * 2 / states)
    space = float(decisions.perception.noise_reach(torch.tensor(1.0, dtype=torch.float64), math.inf))
    reach = reach.clamp_max(space)
    found: Tensor | None = None
    sizes = torch.stack([responses, states, jump.long()], -1)
    for size in sizes.unique(dim=0):
        num, nodes, corrected = size.tolist()
        rows = (sizes == size).all(-1).nonzero().squeeze(-1)
        for some in rows.split(max(1, _EVALUATIONS // (num * (nodes + 2 * _NEAREST)))):
            curve = _cost_curve(decisions[some], _even(centre[some], reach[some], num), nodes, bool(corrected))
            value = use(curve, some)
            found = value.new_zeros(len(decisions), *value.shape[1:]) if found is None else found
            found[some] = value
    return found  # pyright: ignore[reportReturnType]


def _power_of_two(value: Tensor, least: int, most: int) -> Tensor:
    """The next power of two, between two others, (N,)."""
    return 2 ** value.log2().ceil().clamp(math.log2(least), math.log2(most)).long()


def _incommensurable(reach: Tensor, num: Tensor, step: Tensor) -> Tensor:
    """A slightly larger reach (N,) of `num` responses, at distances that no multiple of the states' `step` comes near.

    Costs with a kink at s = r have errors of the sum over states that oscillate with r, one period a step. Responses at
    the golden ratio to it average them out.
    """
    apart = 2 * reach / (num - 1)
    wide = step * ((apart / step - _GOLDEN).ceil().clamp_min(0) + _GOLDEN)
    narrow = step / ((step / apart - _GOLDEN).floor().clamp_min(1) + _GOLDEN)
    return torch.where(apart > _GOLDEN * step, wide, narrow) * (num - 1) / 2


def _jumps_in_state(decisions: Decisions, centre: Tensor, reach: Tensor) -> Tensor:
    """Whether the cost jumps in the state at responses within `reach` of centres, 4 spreads of the belief apart, (N,)."""
    probes, found = (
        _power_of_two(0.5 * reach / decisions.belief.spread, _PROBES, _MOST_PROBES),
        torch.zeros(len(centre)),
    )
    for num in probes.unique().tolist():
        rows = (probes == num).nonzero().squeeze(-1)
        for some in rows.split(max(1, _EVALUATIONS // (num * (_STATES + 2 * _NEAREST)))):
            x_response = _even(centre[some], reach[some], num)
            found[some] = _corrected_costs(decisions[some], x_response, _STATES)[1].float()
    return found > 0


def _even(centre: Tensor, reach: Tensor, num: int) -> Tensor:
    """Even lattices (N, num) about centres (N,)."""
    return centre.unsqueeze(-1) + reach.unsqueeze(-1) * torch.linspace(-1, 1, num, dtype=torch.float64)


def _cost_curve(decisions: Decisions, x_response: Tensor, num_states: int, corrected: bool) -> CostCurve:
    """The curve from responses (N, R)."""

    def inner(decisions: Decisions, x: Tensor) -> Tensor:
        return _corrected_costs(decisions, x, num_states)[0] if corrected else _plain_costs(decisions, x, num_states)

    values = inner(decisions, x_response)
    jumps = _find_jumps(lambda row, x: inner(decisions[row], x.unsqueeze(-1)).squeeze(-1), x_response, values)
    return CostCurve(decisions, x_response, values, jumps)


def _plain_costs(decisions: Decisions, x_response: Tensor, num_states: int) -> Tensor:
    """g (N, R) at responses (N, R) for a cost that does not jump in the state."""
    perception, belief = decisions.perception, decisions.belief
    offsets, weights = noise_lattice(perception, belief.spread, num_states)
    state = perception.from_coordinate(belief.location.unsqueeze(-1) + offsets).unsqueeze(1)
    values = {name: value[:, None, None] for name, value in decisions.parameters.items()}
    costs = evaluate_cost(decisions.cost, perception.from_coordinate(x_response).unsqueeze(-1), state, values)
    return torch.einsum("nrs,ns->nr", costs, weights)


def _corrected_costs(decisions: Decisions, x_response: Tensor, num_states: int) -> tuple[Tensor, Tensor]:
    """g (N, R) at responses (N, R), and whether the cost jumps in the state, (N,)."""
    (num, width), spread = x_response.shape, decisions.belief.spread
    perception, location = decisions.perception, decisions.belief.location
    offsets, weights = noise_lattice(perception, spread, num_states)
    even = (location.unsqueeze(-1) + offsets).unsqueeze(1).expand(-1, width, -1)
    steps = 4.0 ** torch.arange(-_NEAREST, 2, dtype=torch.float64)
    steps = torch.cat([-steps, torch.full((1,), _ASIDE, dtype=torch.float64), steps])
    at_response = location.unsqueeze(-1) + perception.wrap(x_response - location.unsqueeze(-1))
    near = at_response.unsqueeze(-1) + spread[:, None, None] * steps
    near = torch.minimum(torch.maximum(near, even[..., :1]), even[..., -1:])
    x_state, order = torch.cat([even, near], -1).flatten(0, 1).sort(-1)
    owner = torch.arange(num).repeat_interleave(width)
    response = perception.from_coordinate(x_response).flatten()

    def cost_at(row: Tensor, x: Tensor) -> Tensor:
        """Costs (K,) or (K, m) of states with coordinates x, for the flattened responses `row` (K,)."""
        wide = (...,) if x.ndim == 1 else (..., None)
        values = {name: value[owner[row]][wide] for name, value in decisions.parameters.items()}
        return evaluate_cost(decisions.cost, response[row][wide], perception.from_coordinate(x), values)

    costs = cost_at(torch.arange(num * width), x_state)
    lattice_weight = torch.where(order < num_states, weights[owner].gather(-1, order.clamp_max(num_states - 1)), 0.0)
    inner = torch.einsum("nk,nk->n", torch.where(order < num_states, costs, 0.0), lattice_weight)
    jumps = _find_jumps(cost_at, x_state, costs)
    has_jumps = torch.zeros(num, dtype=torch.bool)
    if len(jumps.row):
        has_jumps[owner[jumps.row]] = True
        beyond = torch.nn.functional.pad(
            lattice_weight.flip(-1).cumsum(-1).flip(-1), (0, 1)
        )  # of a node and those after
        first = torch.searchsorted(x_state[jumps.row], jumps.place.unsqueeze(-1), right=True)
        lattice_share = beyond[jumps.row].gather(-1, first).squeeze(-1)
        who = owner[jumps.row]
        share = 1 - perception.noise_cdf(jumps.place - location[who], spread[who])
        inner = inner.index_add(0, jumps.row, jumps.height * (share - lattice_share))
    return inner.unflatten(0, (num, width)), has_jumps


def _find_jumps(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, values: Tensor) -> _Jumps:
    """Jumps of N functions, (rows (F,), points (F,)) -> (F,), that have values (N, K) at ascending points (N, K)."""
    rise, width = values.diff(dim=-1), x.diff(dim=-1)
    slope = rise / width.clamp_min(1e-300)
    before = torch.cat([slope[:, 1:2], slope[:, :-1]], -1)
    after = torch.cat([slope[:, 1:], slope[:, -2:-1]], -1)
    usual = (after - before).abs() + _STRANGE * torch.maximum(after.abs(), before.abs())
    strange = (slope - 0.5 * (before + after)).abs() > usual
    noticed = rise.abs() > _SMALLEST * (values.amax(-1, keepdim=True) - values.amin(-1, keepdim=True))
    row, place = (strange & noticed & (width > 0)).nonzero().unbind(-1)
    low, high = x[row, place], x[row, place + 1]
    value_low, value_high = values[row, place], values[row, place + 1]
    for _ in range(_HALVINGS if len(row) else 0):
        middle = (low + high) / 2
        value = function(row, middle)
        upper = (value_high - value).abs() > (value - value_low).abs()
        low, value_low = torch.where(upper, middle, low), torch.where(upper, value, value_low)
        high, value_high = torch.where(upper, high, middle), torch.where(upper, value_high, value)
    height = value_high - value_low
    kept = (height.abs() > 0.5 * rise[row, place].abs()) & torch.isfinite(height)
    return _Jumps(row[kept], ((low + high) / 2)[kept], height[kept])
