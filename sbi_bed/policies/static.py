"""Designs fixed in advance, optimised but blind to outcomes: the non-adaptive baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..simulators.base import DesignSimulator
from ..utils.checks import check_count
from .base import Policy

__all__ = ["StaticPolicy"]


class _State(NamedTuple):
    num_trials: int
    batch_shape: tuple[int, ...]


class StaticPolicy(Policy):
    """One learned design for each trial; trained by `DAD` like any other policy.

    Args:
        simulator: The experiment to design.
        horizon: Number of trials.
        designs: Fixed designs (horizon, D) to hold instead of learning them.
    """

    def __init__(self, simulator: DesignSimulator, horizon: int, designs: Tensor | None = None):
        horizon = check_count(horizon, "horizon")
        super().__init__(simulator, horizon=horizon)
        self.horizon = horizon
        self.free = nn.Parameter(torch.randn(horizon, self.design_space.free_dim), requires_grad=designs is None)
        self.register_buffer("fixed", None)
        if designs is not None:
            designs = self.design_space.check(designs)
            if designs.shape != (horizon, self.design_dim):
                raise ValueError(f"designs must have shape {(horizon, self.design_dim)}, got {tuple(designs.shape)}.")
            self.fixed = designs.float()
            self.config["designs"] = designs.tolist()

    def initial_state(self, batch_shape: Sequence[int] = ()) -> _State:
        """No trials yet."""
        return _State(0, tuple(batch_shape))

    def update(self, state: _State, design: Tensor, outcome: Tensor) -> _State:
        """Count the trial."""
        return state._replace(num_trials=state.num_trials + 1)

    def propose(self, state: _State) -> Tensor:
        """The next of the designs, (*batch, D)."""
        if state.num_trials >= self.horizon:
            raise ValueError(
                f"this policy holds {self.horizon} designs; there is none for trial {state.num_trials + 1}."
            )
        design = (
            self.design_space.from_free(self.free[state.num_trials])
            if self.fixed is None
            else self.fixed[state.num_trials]
        )
        return design.expand(*state.batch_shape, -1)
