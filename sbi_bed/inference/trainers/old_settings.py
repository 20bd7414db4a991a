"""Settings of the trainers that are not yet on `by_steps.py` and `by_epochs.py`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...utils.checks import check_positive

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Settings"]


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
