"""What single actions cost too much, and where a cost hardly tells actions apart: flat, or tied between two minima."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..simulators.actors.cost import ActorCost
from ..simulators.actors.cost_curve import Decisions, on_cost_curves
from ..simulators.actors.minimise import Minima, find_minima
from ..simulators.actors.perception import Belief, Perception
from ..utils.text_table import format_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ActionReport", "excess_of", "natural_scale", "report_actions"]

_TIED = 0.1  # of the natural scale
_FLAT = 1e-3  # rise for an error of τ, as a share of that for an error of 3 τ


@dataclass(frozen=True)
class ActionReport:
    """Actions and the expected costs around them; tensors (...).

    Expected costs are in units of the cost's natural scale: what an error of τ = √(σ_p² + σ_r²), the noise of state and
    response together, costs on average of both sides.

    Attributes:
        action: The actions.
        best: Optimal actions, by the numerical minimiser.
        excess: Expected cost of the action above that of the best one.
        other: Next best local minimum; NaN where there is none that is nearly as good.
        gap: Its expected cost above that of the best action; infinite where there is none.
        flat: Whether actions within τ of the best one are all nearly as good.
    """

    action: Tensor
    best: Tensor
    excess: Tensor
    other: Tensor
    gap: Tensor
    flat: Tensor

    @property
    def tied(self) -> Tensor:
        """Whether another action, elsewhere, is nearly as good: a gap below 0.1."""
        return self.gap < _TIED

    def to_dataframe(self) -> pd.DataFrame:
        """One row an action."""
        import pandas as pd

        names = ("action", "best", "excess", "other", "gap", "flat", "tied")
        return pd.DataFrame({name: getattr(self, name).reshape(-1).numpy() for name in names})

    def __str__(self) -> str:
        columns = (self.action, self.best, self.excess, self.other, self.gap)
        rows = []
        for *numbers, flat, tied in zip(
            *(c.reshape(-1).tolist() for c in (*columns, self.flat, self.tied)), strict=True
        ):
            said = " and ".join(word for word, is_so in (("flat", flat), ("tied", tied)) if is_so)
            rows.append((*(f"{value:.4g}" for value in numbers), said))
        return format_table(("action", "best", "excess cost", "other minimum", "its excess", ""), rows)


@torch.no_grad()
def report_actions(
    cost: ActorCost,
    perception: Perception,
    belief: Belief,
    sigma_r: Tensor,
    parameters: dict[str, Tensor],
    action: Tensor,
) -> ActionReport:
    """The report for actions (...) that were taken on beliefs (...); see `NeuralActor.report`."""
    if perception.action_dim > 1:
        raise ValueError("a report is for actions that are single numbers, not for vectors; see actor_validation.")
    shape, like = action.shape, action

    def flat(value: Tensor) -> Tensor:
        return value.double().expand(shape).reshape(-1)

    decisions = Decisions(
        cost,
        perception,
        Belief(flat(belief.location), flat(belief.spread)),
        flat(sigma_r),
        {name: flat(value) for name, value in parameters.items()},
    )
    minima = find_minima(decisions)
    x_action = perception.to_coordinate(flat(action))
    excess, scale = excess_of(decisions, minima, x_action), natural_scale(minima.rise)
    steps = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    around = on_cost_curves(
        decisions,
        minima.x_action,
        3 * decisions.tau,
        lambda curve, rows: curve(minima.x_action[rows, None] + decisions.tau[rows, None] * steps),
    )
    rise = around - around[:, 2:3]
    is_flat = rise[:, 1:4].amax(-1) <= _FLAT * rise[:, [0, 4]].amax(-1).abs() + 1e-12

    def shaped(value: Tensor) -> Tensor:
        return value.reshape(shape).to(like) if value.is_floating_point() else value.reshape(shape)

    best, other = (perception.from_coordinate(x) for x in (minima.x_action, minima.x_other))
    gap = (minima.other_cost - minima.cost) / scale
    return ActionReport(action, *(shaped(v) for v in (best, excess, other, gap, is_flat)))


def natural_scale(rise: Tensor) -> Tensor:
    """The unit of expected costs, (N,): their rise (N,) for an error of τ, at least 1 % of its mean over all decisions."""
    return rise.clamp_min(0).clamp_min(0.01 * float(rise.clamp_min(0).mean())).clamp_min(1e-300)


def excess_of(decisions: Decisions, minima: Minima, x_action: Tensor) -> Tensor:
    """Expected costs of actions (N,) above the least ones, in units of the natural scale, (N,)."""
    none = torch.zeros_like(x_action)
    taken = on_cost_curves(decisions, x_action, none, lambda curve, rows: curve(x_action[rows, None])).squeeze(-1)
    excess = taken - minima.cost
    noise = 1e-9 * (taken.abs() + minima.cost.abs())  # of the quadrature, where all costs are equal
    return torch.where(excess.abs() <= noise, 0.0, excess) / natural_scale(minima.rise)
