"""Designs drawn at random: the baseline every other policy has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ...simulators.base import DesignSimulator
from ...simulators.design_space import DesignSpace
from ..base import Policy

__all__ = ["RandomPolicy"]


class RandomPolicy(Policy):
    """Random designs: any candidate, uniform between bounds, else the space's own normal; by torch's global generator.

    Args:
        simulator: The experiment to design.
        distribution: Distribution of designs (event shape (D,)) to draw from instead.

    Raises:
        ValueError: If there is a distribution, and the design space depends on the history.

    Example:
        >>> import torch
        >>> from sbi_bed.simulators import LocationFinding
        >>> policy = RandomPolicy(LocationFinding(), torch.distributions.Uniform(-torch.ones(2), torch.ones(2)))
        >>> policy(torch.zeros(100, 0, 4)).abs().max() <= 1
        tensor(True)
    """

    def __init__(self, simulator: DesignSimulator, distribution: Any = None):
        super().__init__(simulator)
        if distribution is not None and self.design_space.depends_on_history:
            raise ValueError(
                "the design space depends on the history, but distribution= does not; leave it out to draw "
                "from the space."
            )
        self.distribution = distribution

    def initial_state(self, batch_shape: Sequence[int] = ()) -> tuple[int, ...]:
        """Only the batch shape."""
        return tuple(batch_shape)

    def update(self, state: tuple[int, ...], design: Tensor, outcome: Tensor) -> tuple[int, ...]:
        """Nothing is learned from a trial."""
        return state

    def propose(self, state: tuple[int, ...], space: DesignSpace | None = None) -> Tensor:
        """A fresh random design (*batch, D)."""
        if self.distribution is not None:
            return self.distribution.sample(state)
        return (space or self.design_space).sample(state)

    def save(self, path: str | Path) -> None:
        """Save, unless designs come from a user's distribution, which is not plain data."""
        if self.distribution is not None:
            raise ValueError("a RandomPolicy with a distribution of its own cannot be saved; build it again instead.")
        super().save(path)
