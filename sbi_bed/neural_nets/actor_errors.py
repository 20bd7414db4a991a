"""How far a net's actions are from the optimal ones, measured against closed forms or the numerical minimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..simulators.actors.expected_cost import expected_cost
from ..simulators.actors.minimise import minimise_expected_cost
from ..simulators.actors.optimal_actions import optimal_action
from ..simulators.actors.perception import Belief
from ..simulators.actors.situations import Situations, draw_situations
from ..utils.checks import check_count
from ..utils.seeding import seeded
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
    """

    error: Tensor
    indifferent: Tensor
    situations: Situations

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
        }

    def __str__(self) -> str:
        place = ", ".join(f"{name} {value:.3g}" for name, value in self.worst_situation.items())
        left_out = int(self.indifferent.sum())
        note = f" (without {left_out:,} in which it does not matter)" if left_out else ""
        return (
            f"median error {self.median:.3%}, 95th percentile {self.upper:.3%}, worst {self.worst:.2%} of "
            f"{len(self.error):,} actions{note}, at {place}"
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
    if numerically:
        best = minimise_expected_cost(cost, perception, belief, noise, parameters)
    else:
        best = optimal_action(cost, perception, measurement, **given)
    x_best = perception.to_coordinate(best)
    gap = perception.wrap(belief.location + offset.to(belief.location) - x_best)
    tau = (belief.spread.square() + noise.square()).sqrt()
    unit = torch.ones_like(tau) if perception.scale_free else tau
    if perception.scale_free:
        error = gap.expm1().abs()
    else:
        error = (gap.abs() if gap.ndim == 1 else gap.norm(dim=-1)) / tau
    return ActorErrors(error, _indifferent(actor, belief, x_best, noise, parameters, unit), situations)


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
