"""A training's state in one file: nets, optimiser and random numbers, for a training that goes on as if uninterrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...utils.files import load_file, save_file

__all__ = ["read_checkpoint", "write_checkpoint"]

_PARTS = {"settings", "step", "weights", "optimizer", "random_state", "device_random_state", "bounds"}


def write_checkpoint(
    path: str | Path,
    settings: dict[str, Any],
    nets: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    step: int,
    bounds: list[float],
) -> None:
    """Write the state after `step` steps."""
    device = next(next(iter(nets.values())).parameters()).device
    content = {
        "settings": settings,
        "step": step,
        "weights": {name: net.state_dict() for name, net in nets.items()},
        "optimizer": optimizer.state_dict(),
        "random_state": torch.get_rng_state(),
        "device_random_state": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "bounds": bounds,
    }
    save_file(path, "training", content)


def read_checkpoint(
    path: str | Path,
    settings: dict[str, Any],
    nets: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> tuple[int, list[float]]:
    """Restore nets, optimiser and random numbers; returns the steps done and the bounds reported.

    Raises:
        ValueError: If the file is of another training, or damaged.
    """
    content = load_file(path, "training")
    if not content.keys() >= _PARTS:
        raise ValueError(f"{path} lacks parts of a training.")
    others = {k: v for k, v in content["settings"].items() if settings.get(k) != v}
    if others:
        ours = {k: settings.get(k) for k in others}
        raise ValueError(f"{path} is a checkpoint of a training with {others}, not {ours}.")
    try:
        for name, net in nets.items():
            net.load_state_dict(content["weights"][name])
    except (RuntimeError, KeyError) as err:
        raise ValueError(f"{path} is a checkpoint of another policy: {err}") from err
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["random_state"])
    if content["device_random_state"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(content["device_random_state"], device)
    return content["step"], list(content["bounds"])
