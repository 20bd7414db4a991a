"""The arguments of a policy's training, checked, and as plain data for trackers and checkpoints."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...utils.checks import check_count, check_positive

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Settings", "TrainingSettings", "cosine_decay"]

_CHOICES = {
    "gradient": ("auto", "pathwise", "score"),
    "baseline": ("prefix", "mean", "none"),
    "proposal": ("prior", "local"),
    "objective": ("parameters", "model"),
}

_GROWING = 0.4  # share of a training in which experiments grow to their full length


def cosine_decay(done: float, final: float = 0.01) -> float:
    """Share of the first learning rate when a share `done` of the training is behind: along a cosine, to `final`."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True)
class Settings:
    """What all trainings' arguments share: a falling learning rate, a largest norm of gradients, a form for files."""

    learning_rate: float
    final_learning_rate: float
    clip_max_norm: float | None

    @classmethod
    def of(cls, arguments: dict[str, Any], **others: Any) -> Self:
        """Settings from the arguments of a call, its `locals()`, by their names; `others` come before these."""
        known = {**arguments, **others}
        return cls(**{field.name: known[field.name] for field in dataclasses.fields(cls)})

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_learning_rates(self) -> None:
        self._set("learning_rate", check_positive(self.learning_rate, "learning_rate"))
        if not 0 <= self.final_learning_rate <= 1:
            raise ValueError(f"final_learning_rate must be a share between 0 and 1, got {self.final_learning_rate}.")
        self._set("final_learning_rate", float(self.final_learning_rate))  # numpy's numbers would not be plain data

    def learning_rate_at(self, done: float) -> float:
        """Learning rate when a share `done` of the training is behind: along a cosine, to the final one."""
        return self.learning_rate * cosine_decay(done, self.final_learning_rate)

    @property
    def largest_norm(self) -> float:
        """Of gradients; infinite without a limit."""
        return math.inf if self.clip_max_norm is None else self.clip_max_norm

    def as_plain_data(self) -> dict[str, Any]:
        """Name -> number, string, boolean or None."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """Arguments of `DAD.train` that decide its result; see there.

    Raises:
        ValueError: If one is out of range.
    """

    num_steps: int
    batch_size: int
    num_contrastive: int
    seed: int | None
    gradient: str
    baseline: str
    proposal: str
    max_design_gradient: float | None
    compile: bool
    num_shards: int | None
    max_seconds: float | None
    bound_steps: int
    objective: str
    first_trials: int | None

    def __post_init__(self):
        for name in ("num_steps", "num_contrastive"):
            self._set(name, check_count(getattr(self, name), name))
        self._set("batch_size", check_count(self.batch_size, "batch_size", 2))
        self._set("bound_steps", check_count(self.bound_steps, "bound_steps", 0))
        if self.first_trials is not None:
            self._set("first_trials", check_count(self.first_trials, "first_trials"))
        self._set("seed", None if self.seed is None else int(self.seed))
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                *most, last = map(repr, allowed)
                raise ValueError(f"{name} must be {', '.join(most)} or {last}, got {getattr(self, name)!r}.")
        self._check_learning_rates()
        for name in ("max_design_gradient", "clip_max_norm", "max_seconds"):
            value = getattr(self, name)
            if value is None:
                continue
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}.")
            self._set(name, float(value))
        if self.num_shards is not None:
            self._set("num_shards", check_count(self.num_shards, "num_shards"))

    def num_trials_at(self, done: float, num_trials: int) -> int:
        """Trials of the experiments simulated when a share `done` of the training is behind, out of `num_trials`."""
        first = num_trials if self.first_trials is None else min(self.first_trials, num_trials)
        return min(num_trials, first + int((num_trials - first) * done / _GROWING))
