"""A training by epochs in one file: loop, random numbers and place, for a training that goes on as if uninterrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..._compat import TrainingLoop
from ...utils.files import rebuilding
from .old_checkpoint import read_checkpoint, restore_random_state, write_checkpoint

__all__ = ["EpochCheckpoint"]

_KIND = "training_by_epochs"


class EpochCheckpoint:
    """The file that a training is kept in.

    Args:
        path: Where; None for a training that is not kept.
        every: Epochs between writings.
        settings: What decides the training's result, as plain data; a file of another training is refused.
    """

    def __init__(self, path: str | Path | None, every: int, settings: dict[str, Any]):
        self._path, self._every, self._settings = None if path is None else Path(path), every, settings

    def write(self, loop: TrainingLoop, position: dict[str, Any], last: bool) -> None:
        """Write the state after an epoch, if it is its turn or the `last`; `position` is more plain data to keep."""
        if self._path is None or (loop.epoch % self._every and not last):
            return
        write_checkpoint(self._path, _KIND, self._settings, {"loop": loop.state_dict(), **position}, loop.device)

    def read(self, position: set[str]) -> dict[str, Any] | None:
        """What was written, if the file exists; `position` names the plain data that were kept.

        Raises:
            ValueError: If it is damaged, or of another training.
        """
        return read_checkpoint(self._path, _KIND, self._settings, {"loop", *position})

    def restore(self, loop: TrainingLoop, state: dict[str, Any]) -> None:
        """Put a loop, and torch's generators, into the state that `read` gave.

        Raises:
            ValueError: If it is of another net.
        """
        try:
            loop.load_state_dict(state["loop"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as err:
            raise ValueError(f"{self._path} is a checkpoint of another net: {err}") from err
        with rebuilding(str(self._path)):
            restore_random_state(state, loop.device)
