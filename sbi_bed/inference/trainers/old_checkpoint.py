"""Checkpoints of the trainers that are not yet on `by_steps.py` and `by_epochs.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...utils.checks import check_count
from ...utils.files import load_file, rebuilding, save_file

__all__ = ["check_checkpoint_arguments", "read_checkpoint", "restore_random_state", "write_checkpoint"]


def check_checkpoint_arguments(checkpoint: str | Path | None, every: int, resume: bool) -> None:
    """Refuse to resume from nowhere, or to write every 0 steps.

    Raises:
        ValueError: As said.
    """
    if resume and checkpoint is None:
        raise ValueError("resume=True needs checkpoint=, the file to go on from.")
    check_count(every, "checkpoint_every")


def write_checkpoint(
    path: str | Path, kind: str, settings: dict[str, Any], state: dict[str, Any], device: torch.device
) -> None:
    """Write the state of a training, and of torch's generators.

    Args:
        path: The file.
        kind: Kind of training, for files.
        settings: What decides the training's result, as plain data.
        state: Tensors and plain data.
        device: Where the training runs.
    """
    random_state = {
        "random_state": torch.get_rng_state(),
        "device_random_state": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    save_file(path, kind, {"settings": settings, **random_state, **state})


def read_checkpoint(
    path: str | Path | None, kind: str, settings: dict[str, Any], parts: set[str]
) -> dict[str, Any] | None:
    """What `write_checkpoint` wrote, if the file exists.

    Raises:
        ValueError: If the file is damaged, lacks one of the `parts` of a state, or is of another training.
    """
    if path is None or not Path(path).exists():
        return None
    content = load_file(path, kind)
    if not content.keys() >= parts | {"settings", "random_state", "device_random_state"}:
        raise ValueError(f"{path} lacks parts of a training.")
    with rebuilding(path):
        others = {k: v for k, v in content["settings"].items() if settings.get(k) != v}
    if others:
        ours = {k: settings.get(k) for k in others}
        raise ValueError(f"{path} is a checkpoint of a training with {others}, not {ours}.")
    return content


def restore_random_state(content: dict[str, Any], device: torch.device) -> None:
    """Put torch's generators into the state that `read_checkpoint` gave."""
    torch.set_rng_state(content["random_state"])
    if content["device_random_state"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(content["device_random_state"], device)
