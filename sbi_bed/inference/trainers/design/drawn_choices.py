"""A policy that draws, while it is trained, what its designs have to choose: categories, whole numbers, candidates.

A choice has no derivative. In training it is drawn from the softmax of the scores that the policy's net gives, and the
score function of the draw takes the place of the derivative (Williams 1992), which holds for any simulator and explores by
itself. Outside training the policy takes the choice of the best score.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ....simulators.design_space import DesignSpace

__all__ = ["DrawnChoices"]


class DrawnChoices:
    """Wraps a sequential policy for a rollout that trains it.

    Args:
        policy: Policy with `initial_state`, `update`, `propose(state, space)` and `read`.
        design_space: Its design space, which has choices.
    """

    def __init__(self, policy: Any, design_space: DesignSpace, record: list[Tensor] | None = None):
        self._policy, self._space = policy, design_space
        self._record: list[Tensor] = [] if record is None else record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def in_context(self, context: Any) -> DrawnChoices:
        """The policy in a context, for policies that are told one; with the same record."""
        return DrawnChoices(self._policy.in_context(context), self._space, self._record)

    def propose(self, state: Any, *space: DesignSpace) -> Tensor:
        """Next design (*batch, D), drawn."""
        return self._policy.propose(state, self._space.recording(self._record))

    def log_choices(self, num_trials: int) -> Tensor | None:
        """Log-probabilities (*batch, T) of the draws; None where the policy draws otherwise, or passes on no gradient."""
        if len(self._record) != num_trials or not any(one.requires_grad for one in self._record):
            return None
        return torch.stack(self._record, -1)

    @staticmethod
    def suits(policy: Any, design_space: DesignSpace) -> bool:
        """Whether there is something to draw, and the policy can be told to."""
        return design_space.has_choices and len(inspect.signature(policy.propose).parameters) > 1
