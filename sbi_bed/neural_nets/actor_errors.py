"""How far a net's actions are from the optimal ones, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..simulators.actors.cost_curve import Decisions, on_cost_curves
from ..simulators.actors.expected_cost import expected_cost
from ..simulators.actors.minimise import Minima, find_minima, minimise_expected_cost
from ..simulators.actors.perception import Belief
from ..simulators.actors.situations import Situations, draw_situations
from ..utils.checks import check_count
from ..utils.seeding import seeded
from .action_report import excess_of, natural_scale
from .actor import NeuralActor

__all__ = ["ActorErrors", "actor_errors"]

_ROWS_AT_A_TIME = 200


@dataclass(frozen=True)
class ActorErrors:
    """Errors of N actions in random situations.

    Where all actions near the best are as good as it (any response within a dead zone, say) there is nothing to be wrong
    about. Such situations are counted, but have no part in the figures: those in which moving the action by 10 % (by 0.1 τ
    where coordinates are no logarithms) raises the expected cost by less than 10⁻⁴ of what moving it by a factor of e (by τ)
    does, or 10⁻⁸ of a factor of e³ (3 τ), or 10⁻¹⁰ of the mean of that over all situations.

    Attributes:
        error: |a − a*| / a* where coordinates are logarithms; otherwise the distance in units of τ = √(σ_p² + σ_r²), the
            noise of state and response together; (N,).
        indifferent: Whether it does not matter there, (N,).
        situations: Where.
        excess: Expected cost above the least one, (N,), in units of the cost's natural scale: what an error of τ costs on
            average of both sides (at least 1 % of the mean of that). Indifferent situations count, too.
        gap: Expected cost of the next best local minimum above the least one, in the same unit, (N,). Infinite where there
            is none, and where it was not looked for: closed forms, vectors.
    """

    error: Tensor
    indifferent: Tensor
    situations: Situations
    excess: Tensor
    gap: Tensor

    @property
    def median(self) -> float:
        """Median error."""
        return self._quantile(0.5)

    @property
    def upper(self) -> float:
        """The 95th percentile."""
        return self._quantile(0.95)

    @property
    def worst(self) -> float:
        """Largest error."""
        return self._quantile(1.0)

    @property
    def median_excess(self) -> float:
        """Median excess cost."""
        return float(self.excess.quantile(0.5))

    @property
    def upper_excess(self) -> float:
        """The 95th percentile of the excess cost."""
        return float(self.excess.quantile(0.95))

    @property
    def worst_excess(self) -> float:
        """Largest excess cost."""
        return float(self.excess.max())

    @property
    def share_tied(self) -> float:
        """Share of situations in which another local minimum is within 0.1 natural scales of the best one."""
        return float((self.gap < 0.1).double().mean())

    @property
    def worst_situation(self) -> dict[str, float]:
        """Name -> value of the measurement and all parameters where the error is largest."""
        place = int(self.error.masked_fill(self.indifferent, -1.0).argmax())
        measurement = self.situations.measurement[place].reshape(-1)
        where = {f"measurement[{i}]" if len(measurement) > 1 else "measurement": v for i, v in enumerate(measurement)}
        where |= {name: value[place] for name, value in self.situations.parameters.items()}
        return {name: float(value) for name, value in where.items()}

    def as_plain_data(self) -> dict[str, Any]:
        """Quantiles and the worst place, for files."""
        return {
            "num_actions": len(self.error),
            "num_indifferent": int(self.indifferent.sum()),
            "median": self.median,
            "upper": self.upper,
            "worst": self.worst,
            "worst_situation": self.worst_situation,
            "median_excess": self.median_excess,
            "upper_excess": self.upper_excess,
            "worst_excess": self.worst_excess,
            "share_tied": self.share_tied,
        }

    def __str__(self) -> str:
        place = ", ".join(f"{name} {value:.3g}" for name, value in self.worst_situation.items())
        left_out = int(self.indifferent.sum())
        note = f" (without {left_out:,} in which it does not matter)" if left_out else ""
        return (
            f"median error {self.median:.3%}, 95th percentile {self.upper:.3%}, worst {self.worst:.2%} of "
            f"{len(self.error):,} actions{note}, at {place}; excess cost, in units of what an "
            f"error as large as the noise costs: median {self.median_excess:.2g}, 95th percentile "
            f"{self.upper_excess:.2g}, worst {self.worst_excess:.2g}; "
            f"{self.share_tied:.1%} of situations tied between two actions"
        )

    def _quantile(self, share: float) -> float:
        kept = self.error[~self.indifferent]
        return float(kept.quantile(share)) if len(kept) else 0.0


@torch.no_grad()
def actor_errors(
    actor: NeuralActor, num_actions: int = 1000, *, seed: int | None = None, numerically: bool = False
) -> ActorErrors:
    """Compare a net's actions with optimal ones in situations drawn from all of its training ranges.

    Args:
        actor: The net.
        num_actions: Number N of situations.
        seed: Seed; the global generator if None.
        numerically: Whether to use the numerical minimiser even where there is a closed form.

    Example:
        >>> from sbi_bed.simulators import QuadraticCost
        >>> actor_errors(NeuralActor(QuadraticCost()), num_actions=100).worst < 0.5  # untrained, it acts at the median
        True
    """
    check_count(num_actions, "num_actions")
    cost, perception = actor.cost, actor.perception
    with seeded(seed):
        situations = draw_situations(cost, perception, num_actions)
    given = {name: value.double() for name, value in situations.parameters.items()}
    parameters = {name: given[name] for name in cost.parameters}
    measurement, noise = situations.measurement.double(), given["sigma_r"]
    belief = perception.belief(measurement, given["sigma"], given["sigma_0"], given["mu_0"])
    device = actor.head.weight.device
    moved = {name: value.to(device) for name, value in parameters.items()}
    offset = actor.offset(Belief(*(part.to(device) for part in belief)), noise.to(device), moved)
    best = None if numerically else cost.closed_form(perception, belief, noise, **parameters)
    x_best, excess, other = _judge(actor, Decisions(cost, perception, belief, noise, parameters), best, offset)
    gap = perception.wrap(belief.location + offset.to(belief.location) - x_best)
    tau = (belief.spread.square() + noise.square()).sqrt()
    unit = torch.ones_like(tau) if perception.scale_free else tau
    if perception.scale_free:
        error = gap.expm1().abs()
    else:
        error = (gap.abs() if gap.ndim == 1 else gap.norm(dim=-1)) / tau
    indifferent = _indifferent(actor, belief, x_best, noise, parameters, unit)
    return ActorErrors(error, indifferent, situations, excess, other)


def _judge(
    actor: NeuralActor, decisions: Decisions, best: Tensor | None, offset: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates of the best actions, known or searched for, the excess of those taken, and the next minimum's, (N,)."""
    perception, belief, tau = actor.perception, decisions.belief, decisions.tau
    x_taken = belief.location + offset.to(belief.location)
    if perception.action_dim > 1:
        return _judge_vectors(actor, decisions, best, x_taken)
    if best is None:
        minima = find_minima(decisions)
        gap = (minima.other_cost - minima.cost) / natural_scale(minima.rise)
    else:
        x_best, steps = perception.to_coordinate(best), torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
        around = on_cost_curves(
            decisions, x_best, tau, lambda curve, rows: curve(x_best[rows, None] + tau[rows, None] * steps)
        )
        rise = (around[:, 0] + around[:, 2]) / 2 - around[:, 1]
        gap = torch.full_like(rise, torch.inf)
        minima = Minima(x_best, around[:, 1], torch.full_like(rise, torch.nan), gap, rise)
    return minima.x_action, excess_of(decisions, minima, x_taken), gap


def _judge_vectors(
    actor: NeuralActor, decisions: Decisions, best: Tensor | None, x_taken: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    perception, belief, parameters, tau = actor.perception, decisions.belief, decisions.parameters, decisions.tau
    if best is None:
        best = minimise_expected_cost(actor.cost, perception, belief, decisions.sigma_r, parameters)
    x_best, dim, parts = perception.to_coordinate(best), perception.action_dim, []
    moves = torch.cat([torch.zeros(1, dim), torch.eye(dim), -torch.eye(dim)]).to(tau)
    for i in range(0, len(tau), 10):
        rows = slice(i, i + 10)
        x_action = torch.cat([x_taken[rows, None], x_best[rows, None] + tau[rows, None, None] * moves], 1)
        values, chunk = {name: value[rows] for name, value in parameters.items()}, Belief(*(v[rows] for v in belief))
        parts.append(expected_cost(actor.cost, perception, chunk, x_action, decisions.sigma_r[rows], values, 9))
    costs = torch.cat(parts)
    scale = natural_scale(costs[:, 2:].mean(-1) - costs[:, 1])
    return x_best, (costs[:, 0] - costs[:, 1]) / scale, torch.full_like(tau, torch.inf)


def _indifferent(
    actor: NeuralActor, belief: Belief, x_best: Tensor, sigma_r: Tensor, parameters: dict[str, Tensor], unit: Tensor
) -> Tensor:
    """Whether actions near the best are all as good, (N,)."""
    dim, parts = actor.perception.action_dim, []
    distances = torch.tensor([0.1, 1.0, 3.0]).to(unit)
    directions = torch.cat([torch.eye(dim), -torch.eye(dim)]).to(unit)
    moves = torch.cat([torch.zeros(1, dim).to(unit), (distances[:, None, None] * directions).flatten(0, 1)])
    moves = moves.squeeze(-1) if dim == 1 else moves  # (1 + 6 D,) or (1 + 6 D, D)
    num_nodes = 41 if dim == 1 else 7
    for i in range(0, len(unit), _ROWS_AT_A_TIME if dim == 1 else 10):
        rows = slice(i, i + (_ROWS_AT_A_TIME if dim == 1 else 10))
        x_action = x_best[rows].unsqueeze(1) + (
            unit[rows, None] * moves if dim == 1 else unit[rows, None, None] * moves
        )
        chunk = Belief(belief.location[rows], belief.spread[rows])
        values = {name: value[rows] for name, value in parameters.items()}
        costs = expected_cost(actor.cost, actor.perception, chunk, x_action, sigma_r[rows], values, num_nodes)
        parts.append((costs[:, 1:] - costs[:, :1]).unflatten(1, (3, -1)).amax(-1))
    near, far, farthest = torch.cat(parts).unbind(-1)
    return near <= 1e-4 * far.abs() + 1e-8 * farthest.abs() + 1e-10 * farthest.abs().mean()
