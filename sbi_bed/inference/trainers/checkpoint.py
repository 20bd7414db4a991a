"""A training's state in one file, random numbers included, so that a resumed training equals an uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...utils.files import load_file, rebuilding, save_file
from .settings import Settings

__all__ = ["Checkpoint"]

_KIND = "training"
_RANDOM = {"random_state", "device_random_state"}


class Checkpoint:
    """The file of one training, if it has one. Make it under the training's seed, before anything is drawn.

    Args:
        settings: Settings of the training: which file, how often, and whether to resume.
        description: What else decides the training's result, as plain data. A file with another description is refused.
        device: Where the training runs.
    """

    def __init__(self, settings: Settings, description: dict[str, Any], device: torch.device):
        self._settings, self._device = settings, device
        self._description = {**description, **settings.as_plain_data()}
        self._beginning = self._random_state()

    @property
    def description(self) -> dict[str, Any]:
        """All that decides the training's result, as plain data."""
        return self._description

    def read(self, parts: set[str]) -> dict[str, Any] | None:
        """The state to resume from, or None. torch's generators are then as they were when the training began.

        Args:
            parts: Names of the state's parts.

        Raises:
            ValueError: If the file is damaged, lacks a part, or belongs to another training.
        """
        path = self._settings.checkpoint
        if not self._settings.resume or path is None or not Path(path).exists():
            return None
        content = load_file(path, _KIND)
        if not content.keys() >= parts | _RANDOM | {"settings", "beginning"}:
            raise ValueError(f"{path} lacks parts of a training.")
        with rebuilding(path):
            theirs = content["settings"]
            different = {
                k: theirs.get(k) for k in theirs | self._description if theirs.get(k) != self._description.get(k)
            }
            if different:
                ours = {name: self._description.get(name) for name in different}
                raise ValueError(f"{path} is a checkpoint of a training with {different}, not {ours}.")
            self._beginning = {name: content["beginning"][name] for name in _RANDOM}
            self._set_random_state(self._beginning)
        return content

    def restore_random_state(self, content: dict[str, Any]) -> None:
        """Put torch's generators into the state that they had when the file was written."""
        with rebuilding(str(self._settings.checkpoint)):
            self._set_random_state(content)

    def is_due(self, number: int) -> bool:
        """Whether the state is to be written after so many steps or epochs."""
        return self._settings.checkpoint is not None and number % self._settings.checkpoint_every == 0

    def write(self, state: dict[str, Any]) -> None:
        """Write the training's state, tensors and plain data, if there is a file."""
        if self._settings.checkpoint is not None:
            rest = {"settings": self._description, "beginning": self._beginning, **self._random_state()}
            save_file(self._settings.checkpoint, _KIND, {**rest, **state})

    def _random_state(self) -> dict[str, Any]:
        on_device = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        return {"random_state": torch.get_rng_state(), "device_random_state": on_device}

    def _set_random_state(self, content: dict[str, Any]) -> None:
        torch.set_rng_state(content["random_state"])
        if content["device_random_state"] is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(content["device_random_state"], self._device)
