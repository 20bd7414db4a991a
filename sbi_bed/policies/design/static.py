"""Designs fixed in advance, optimised but blind to outcomes: the non-adaptive baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...simulators.base import DesignSimulator
from ...simulators.design_space import DesignSpace
from ...utils.checks import check_count
from ..base import Policy

__all__ = ["StaticPolicy"]


class _State(NamedTuple):
    num_trials: int
    batch_shape: tuple[int, ...]


class StaticPolicy(Policy):
    """One learned design for each trial; trained by `DAD` like any other policy.

    What is learned are free coordinates: in a space that depends on the history, places between the bounds of the trial.

    Args:
        simulator: The experiment to design.
        horizon: Number of trials.
        designs: Fixed designs (horizon, D) to hold instead of learning them.
        num_starts: Number S of such lists, learned side by side, the i-th history of a batch under list i mod S. `DAD`
            keeps the best one when it has trained them; where designs have many local optima, as they mostly do, one
            start finds one of them (Klein et al. 2026, arXiv 2602.06900).

    Attributes:
        free: Learned free coordinates of the designs, (S, horizon, F).
        fixed: Designs given, (horizon, D), or None.

    Raises:
        ValueError: If the designs have another shape or lie outside their space, or there is more than one start for
            fixed ones.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> policy = StaticPolicy(LocationFinding(), horizon=2, designs=torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        >>> history = torch.tensor([[0.0, 1.0, 0.5, 1.0]])  # one trial: design, outcome, mask
        >>> policy(history)
        tensor([2., 3.])
    """

    learning_rate = 2e-2  # its weights are the designs

    def __init__(self, simulator: DesignSimulator, horizon: int, designs: Tensor | None = None, num_starts: int = 1):
        horizon, num_starts = check_count(horizon, "horizon"), check_count(num_starts, "num_starts")
        super().__init__(simulator, horizon=horizon, num_starts=num_starts)
        if designs is not None and num_starts > 1:
            raise ValueError("fixed designs have one start.")
        self.horizon = horizon
        shape = (num_starts, horizon, self.design_space.free_dim)
        self.free = nn.Parameter(torch.randn(shape), requires_grad=designs is None)
        self.register_buffer("fixed", None)
        if designs is not None:
            designs = self.design_space.check(designs)
            if designs.shape != (horizon, self.design_dim):
                raise ValueError(f"designs must have shape {(horizon, self.design_dim)}, got {tuple(designs.shape)}.")
            self.fixed = designs.to(torch.get_default_dtype())
            self.config["designs"] = designs.tolist()

    def initial_state(self, batch_shape: Sequence[int] = ()) -> _State:
        """No trials yet."""
        return _State(0, tuple(batch_shape))

    def update(self, state: _State, design: Tensor, outcome: Tensor) -> _State:
        """Count the trial."""
        return state._replace(num_trials=state.num_trials + 1)

    def propose(self, state: _State, space: DesignSpace | None = None) -> Tensor:
        """The next of the designs, (*batch, D).

        Raises:
            ValueError: If there is none left, or a fixed one lies outside `space`.
        """
        if state.num_trials >= self.horizon:
            raise ValueError(
                f"this policy holds {self.horizon} designs; there is none for trial {state.num_trials + 1}."
            )
        if self.fixed is None:
            return (space or self.design_space).from_free(self._free_of(state))
        design = self.fixed[state.num_trials].expand(*state.batch_shape, -1)
        return design if space is None else space.check(design)

    @property
    def num_starts(self) -> int:
        """Number of lists of designs."""
        return len(self.free)

    def keep_start(self, index: int) -> None:
        """Forget all lists of designs but one."""
        self.free = nn.Parameter(self.free.detach()[index : index + 1].clone())
        self.config["num_starts"] = 1

    def _free_of(self, state: _State) -> Tensor:
        """Free coordinates (*batch, F) of the next designs."""
        free = self.free[:, state.num_trials]
        if self.num_starts > 1:
            size = math.prod(state.batch_shape)
            return free[torch.arange(size, device=free.device) % self.num_starts].reshape(*state.batch_shape, -1)
        return free[0].expand(*state.batch_shape, -1)
