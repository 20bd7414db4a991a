"""Designs of a batch of readings one after the other: each the best given those before it.

The information of readings that are independent given θ is submodular: choosing one after the other reaches at least
1 − 1/e of the best batch's (Nemhauser et al. 1978), and needs B searches of one reading's space instead of one of its B-th
power, of which J candidates have J^B. What it finds is where the search of the whole batch starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...simulators.base import DesignSimulator
from ...simulators.batched import BatchedSimulator
from .design_search import best_design, starting_designs

__all__ = ["one_after_the_other"]

_MOST_CANDIDATES = 1024  # that are all scored


def one_after_the_other(
    simulator: BatchedSimulator, gain_of: Callable[[DesignSimulator], Any], used: Tensor, num: int, **climbs: Any
) -> Tensor:
    """A batch of designs (K, B · D) for each of K experiments.

    Args:
        simulator: The experiment, of B readings in a batch.
        gain_of: The experiment with fewer readings -> callable designs (K, S, b · D) -> gains (K, S).
        used: Designs so far, (K, n, B · D).
        num: Number of designs to score for each reading, where there are not only few.
        **climbs: Further arguments of `best_design`.
    """
    single = simulator.simulator
    space, so_far = single.design_space, simulator.readings(used).flatten(1, 2)
    chosen = used.new_zeros(len(used), 0)
    for reading in range(1, simulator.batch_size + 1):
        batch_gain = gain_of(BatchedSimulator(single, reading))

        def gain(designs: Tensor, chosen: Tensor = chosen, batch_gain: Any = batch_gain) -> Tensor:
            before = chosen.unsqueeze(1).expand(-1, designs.shape[1], -1)
            return batch_gain(torch.cat([before, designs], -1))

        every = space.candidates
        if every is not None and len(every) <= _MOST_CANDIDATES:
            designs = every.to(used).expand(len(used), -1, -1)
            best = designs.gather(1, gain(designs).argmax(1)[:, None, None].expand(-1, 1, space.dim)).squeeze(1)
        else:
            best = best_design(gain, starting_designs(space, num, so_far), space, **climbs)
        chosen = torch.cat([chosen, best], -1)
    return chosen
