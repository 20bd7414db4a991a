"""A training by epochs in one file: loop, random numbers and place, for a training that goes on as if uninterrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..._compat import TrainingLoop
from ...utils.files import load_file, save_file

__all__ = ["EpochCheckpoint"]

_KIND = "training_by_epochs"
_PARTS = {"settings", "loop", "random_state", "device_random_state"}


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
        on_gpu = loop.device.type == "cuda"
        content = {
            "settings": self._settings,
            "loop": loop.state_dict(),
            "random_state": torch.get_rng_state(),
            "device_random_state": torch.cuda.get_rng_state(loop.device) if on_gpu else None,
        }
        save_file(self._path, _KIND, {**content, **position})

    def read(self) -> dict[str, Any] | None:
        """What was written, if the file exists.

        Raises:
            ValueError: If it is damaged, or of another training.
        """
        if self._path is None or not self._path.exists():
            return None
        content = load_file(self._path, _KIND)
        if not content.keys() >= _PARTS:
            raise ValueError(f"{self._path} lacks parts of a training.")
        others = {k: v for k, v in content["settings"].items() if self._settings.get(k) != v}
        if others:
            ours = {k: self._settings.get(k) for k in others}
            raise ValueError(f"{self._path} is a checkpoint of a training with {others}, not {ours}.")
        return content

    def restore(self, loop: TrainingLoop, state: dict[str, Any]) -> None:
        """Put a loop, and torch's generators, into the state that `read` gave.

        Raises:
            ValueError: If it is of another net.
        """
        try:
            loop.load_state_dict(state["loop"])
        except (RuntimeError, ValueError, KeyError) as err:
            raise ValueError(f"{self._path} is a checkpoint of another net: {err}") from err
        torch.set_rng_state(state["random_state"])
        if state["device_random_state"] is not None and loop.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_random_state"], loop.device)
