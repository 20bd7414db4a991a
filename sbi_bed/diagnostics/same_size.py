"""Comparison of data sets with simulated ones of the same sizes: simulated sets are cut to the sizes of each data set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..utils.packing.sizes import TrainedRange

__all__ = ["FEWEST_SIMULATED", "same_size_p_values"]

FEWEST_SIMULATED = 40  # simulated sets to compare with, at least
_MOST_CUT = 1000  # simulated sets that are cut to the sizes of an observed one


def same_size_p_values(
    x: Tensor, reference_x: Tensor, p_value: Tensor, p_value_among: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """p-values (B,) of packed data sets x against simulated ones of their sizes.

    Args:
        x: Observed data sets, (B, *levels, F + 1).
        reference_x: Simulated ones, (N, *levels, F + 1).
        p_value: p-values (B,) against the simulated sets as they are; they stay where the sizes of x are simulated ones.
        p_value_among: (one data set (1, …), the simulated ones cut to its sizes) → its p-value, (1,).

    Returns:
        NaN where fewer than 40 simulated sets are large enough.
    """
    mask, reference_mask = x[..., -1] > 0, reference_x[..., -1] > 0
    simulated = TrainedRange(mask.ndim - 1).to(x.device)
    simulated.learn(reference_mask)
    found = p_value.clone()
    for row in simulated.is_outside(mask).nonzero().flatten().tolist():
        cut = _cut_to_mask(reference_x, mask[row])
        found[row] = p_value_among(x[row : row + 1], cut)[0] if len(cut) >= FEWEST_SIMULATED else torch.nan
    return found


def _cut_to_mask(reference_x: Tensor, mask: Tensor) -> Tensor:
    """Simulated sets that were observed wherever a mask (*levels) is 1, and are then without observations elsewhere."""
    for level, size in enumerate(reference_x.shape[1:-1]):
        missing = size - mask.shape[level]
        if missing < 0:  # what is beyond the simulated sizes has to be padding
            if bool(mask.narrow(level, size, -missing).any()):
                return reference_x[:0]
            mask = mask.narrow(level, 0, size)
        elif missing:
            shape = list(mask.shape)
            shape[level] = missing
            mask = torch.cat([mask, mask.new_zeros(shape)], level)
    usable = ((reference_x[..., -1] > 0) | ~mask).flatten(1).all(1)
    return reference_x[usable][:_MOST_CUT] * mask.unsqueeze(-1)
