"""The arguments of an actor's training, checked, and as plain data for trackers and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from ....utils.checks import check_count, check_positive
from ..old_settings import Settings

__all__ = ["ActorSettings"]


@dataclass(frozen=True)
class ActorSettings(Settings):
    """Arguments of `ActorTrainer.train` that decide its result; see there.

    Raises:
        ValueError: If one is out of range.
    """

    num_steps: int
    batch_size: int
    num_nodes: int
    max_seconds: float | None
    seed: int | None

    def __post_init__(self):
        for name, least in (("num_steps", 1), ("batch_size", 2), ("num_nodes", 4)):
            self._set(name, check_count(getattr(self, name), name, least))
        self._set("seed", None if self.seed is None else int(self.seed))
        self._check_learning_rates()
        for name in ("max_seconds", "clip_max_norm"):
            value = getattr(self, name)
            self._set(name, None if value is None else check_positive(value, name))
