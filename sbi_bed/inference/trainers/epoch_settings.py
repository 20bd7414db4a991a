"""The arguments of a training by epochs, checked, and as plain data for trackers and checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...utils.checks import check_count, check_positive
from .old_settings import Settings

__all__ = ["EpochSettings"]


@dataclass(frozen=True)
class EpochSettings(Settings):
    """Arguments of `ModelComparison.train` and `ContextNPE.train` that decide their result; see there.

    Raises:
        ValueError: If one is out of range.
    """

    max_num_epochs: int
    training_batch_size: int
    validation_fraction: float
    stop_after_epochs: int
    weight_decay: float
    max_restarts: int
    max_seconds: float | None
    seed: int | None

    def __post_init__(self):
        for name in ("max_num_epochs", "training_batch_size", "stop_after_epochs", "max_restarts"):
            self._set(name, check_count(getattr(self, name), name, 0 if name == "max_restarts" else 1))
        self._set("seed", None if self.seed is None else int(self.seed))
        self._check_learning_rates()
        for name in ("clip_max_norm", "max_seconds"):
            value = getattr(self, name)
            self._set(name, None if value is None else check_positive(value, name))
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}.")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be a share between 0 and 1, got {self.validation_fraction}.")
        for name in ("weight_decay", "validation_fraction"):
            self._set(name, float(getattr(self, name)))
