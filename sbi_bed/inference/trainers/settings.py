"""Settings that all trainers share: checked once, and kept as plain data for trackers and checkpoints."""

from __future__ import annotations

import dataclasses
import inspect
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...utils.checks import check_count, check_positive

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Settings", "StepSettings", "cosine_decay"]

_ABOUT_THE_FILE = ("checkpoint", "checkpoint_every", "resume")


def cosine_decay(done: float, final: float = 0.01) -> float:
    """Factor of the first learning rate after a share `done` of the training: from 1 to `final` along a cosine."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _limit(value: Any, name: str) -> float | None:
    """A positive number; None and infinity mean that there is no limit."""
    return None if value is None or value == math.inf else check_positive(value, name)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of every training.

    Attributes:
        learning_rate: First learning rate.
        seed: Seed of the whole training; the global generator if None.
        final_learning_rate: Share of the learning rate that is left at the end.
        clip_max_norm: Largest norm of the gradients of each net; None for no limit.
        max_seconds: Time limit, counted from the call of `train`; a resumed training counts the seconds before. The learning
            rate falls within this time.
        checkpoint: File that holds the training's state.
        checkpoint_every: Steps or epochs between two writings of the checkpoint; it is also written at the end.
        resume: Go on from `checkpoint` where that file exists; the result is that of an uninterrupted training.

    Raises:
        TypeError: If a number is of the wrong kind, or a keyword is not a setting.
        ValueError: If a number is out of range, or `resume` has no `checkpoint`.
    """

    learning_rate: float
    seed: int | None = None
    final_learning_rate: float = 0.01
    clip_max_norm: float | None = 1.0
    max_seconds: float | None = None
    checkpoint: str | Path | None = None
    checkpoint_every: int = 500
    resume: bool = False

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> Self:
        """Settings from a call's keywords; a keyword that is no setting is refused by its name."""
        known = list(inspect.signature(cls).parameters)
        for name in arguments.keys() - set(known):
            raise TypeError(f"train() has no argument {name!r}; it takes {', '.join(known)}.")
        return cls(**arguments)

    def __post_init__(self):
        self._set("learning_rate", check_positive(self.learning_rate, "learning_rate"))
        self._set("final_learning_rate", float(self.final_learning_rate))
        if not 0 <= self.final_learning_rate <= 1:
            raise ValueError(f"final_learning_rate must be a share between 0 and 1, got {self.final_learning_rate}.")
        self._set("seed", None if self.seed is None else check_count(self.seed, "seed", -(2**63)))
        for name in ("clip_max_norm", "max_seconds"):
            self._set(name, _limit(getattr(self, name), name))
        self._set("checkpoint", None if self.checkpoint is None else Path(self.checkpoint))
        self._set("checkpoint_every", check_count(self.checkpoint_every, "checkpoint_every"))
        if self.resume and self.checkpoint is None:
            raise ValueError("resume=True needs checkpoint=, the file to go on from.")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def learning_rate_at(self, done: float) -> float:
        """Learning rate after a share `done` of the training."""
        return self.learning_rate * cosine_decay(done, self.final_learning_rate)

    @property
    def largest_norm(self) -> float:
        """Largest norm of gradients; infinite without a limit."""
        return math.inf if self.clip_max_norm is None else self.clip_max_norm

    def as_plain_data(self) -> dict[str, Any]:
        """What decides the result, as name → number, string, boolean or None."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _ABOUT_THE_FILE}


@dataclass(frozen=True, kw_only=True)
class StepSettings(Settings):
    """Settings of a training by steps.

    Attributes:
        num_steps: Number of gradient steps.
        batch_size: Simulations in each step.
        num_shards: Parts of each batch, simulated one after the other, or side by side in the processes that `torchrun`
            starts; one for each process if None.

    Example:
        >>> settings = StepSettings(num_steps=100, batch_size=16, learning_rate=1e-3, max_seconds=60)
        >>> settings.learning_rate_at(1.0) < 1e-4
        True
    """

    num_steps: int
    batch_size: int
    num_shards: int | None = None

    def __post_init__(self):
        super().__post_init__()
        self._set("num_steps", check_count(self.num_steps, "num_steps"))
        self._set("batch_size", check_count(self.batch_size, "batch_size", 2))
        if self.num_shards is not None:
            self._set("num_shards", check_count(self.num_shards, "num_shards"))
