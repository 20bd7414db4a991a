"""How close a trained actor is to optimal actions, and where it is worst."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...neural_nets.actor import NeuralActor
from ...neural_nets.actor_errors import ActorErrors, actor_errors
from ...utils.text_table import format_table

__all__ = ["ActorRegion", "ActorValidation", "actor_validation"]

_PARTS = 5


@dataclass(frozen=True)
class ActorRegion:
    """Errors in the situations in which one parameter lies between two values.

    Attributes:
        name: The parameter, or "measurement".
        low: Its smallest value here.
        high: Its largest value here.
        count: Number of situations.
        median: Median error.
        upper: 95th percentile.
        worst: Largest error.
        upper_excess: 95th percentile of the excess cost, as in `ActorErrors`.
    """

    name: str
    low: float
    high: float
    count: int
    median: float
    upper: float
    worst: float
    upper_excess: float


@dataclass(frozen=True)
class ActorValidation:
    """Errors of an actor, all together and by regions: fifths of the situations along each parameter.

    Attributes:
        errors: Of each action (`ActorErrors`); its `median`, `upper`, `worst`, `worst_situation` and `upper_excess`
            summarise them.
        regions: Along each parameter in turn.
    """

    errors: ActorErrors
    regions: list[ActorRegion]

    @property
    def worst_region(self) -> ActorRegion:
        """Where the 95th percentile is largest."""
        return max(self.regions, key=lambda region: region.upper)

    def __str__(self) -> str:
        rows = [
            (
                f"{r.name} {r.low:.3g} to {r.high:.3g}",
                str(r.count),
                *(f"{100 * value:.3f}" for value in (r.median, r.upper, r.worst)),
                f"{r.upper_excess:.3g}",
            )
            for r in self.regions
        ]
        return f"{self.errors}\n" + format_table(
            ("where", "actions", "median, %", "95th, %", "worst, %", "excess cost, 95th"), rows
        )


def actor_validation(
    actor: NeuralActor, num_actions: int = 10_000, *, seed: int | None = None, numerically: bool = False
) -> ActorValidation:
    """Compare an actor with optimal actions all over its training ranges.

    Args:
        actor: The net.
        num_actions: Random situations; about 1,000 a second where there is no closed form, of vectors about 10.
        seed: Seed; the global generator if None.
        numerically: Whether to use the numerical minimiser even where there is a closed form.

    Raises:
        TypeError: If `actor` is not a `NeuralActor`.

    Example:
        >>> from sbi_bed.simulators import QuadraticEffortCost
        >>> validation = actor_validation(NeuralActor(QuadraticEffortCost()), num_actions=200)  # untrained
        >>> validation.worst_region.upper >= validation.errors.upper
        True
    """
    if not isinstance(actor, NeuralActor):
        raise TypeError(f"actor must be a NeuralActor, got {actor!r}.")
    errors = actor_errors(actor, num_actions, seed=seed, numerically=numerically)
    values = errors.situations.parameters
    if errors.situations.measurement.ndim == 1:
        values = {"measurement": errors.situations.measurement, **values}
    kept = ~errors.indifferent
    regions = [
        region
        for name, value in values.items()
        for region in _regions(name, value[kept].double(), errors.error[kept], errors.excess[kept])
    ]
    return ActorValidation(errors, regions)


def _regions(name: str, value: Tensor, error: Tensor, excess: Tensor) -> list[ActorRegion]:
    found = []
    for rows in value.argsort().tensor_split(_PARTS):
        if len(rows):
            median, upper, worst = error[rows].quantile(torch.tensor([0.5, 0.95, 1.0]).to(error)).tolist()
            low, high, upper_excess = float(value[rows[0]]), float(value[rows[-1]]), float(excess[rows].quantile(0.95))
            found.append(ActorRegion(name, low, high, len(rows), median, upper, worst, upper_excess))
    return found
