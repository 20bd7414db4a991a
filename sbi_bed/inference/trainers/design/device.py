"""Distributions on another device: torch's own have no `.to`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["to_device"]


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor, or a copy of a distribution with all its tensors, on `device`; anything else, and on the CPU, as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if device.type == "cpu" or not isinstance(value, Distribution):
        return value
    moved = copy.copy(value)
    for name, part in vars(value).items():
        if isinstance(part, (Tensor, Distribution)):
            setattr(moved, name, to_device(part, device))
    return moved
