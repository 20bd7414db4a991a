"""The trials of a live experiment, kept so that the thousandth costs no more than the first."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....utils.history import pack_history

__all__ = ["Trials"]


class Trials:
    """Designs, outcomes and costs in the order in which they came.

    Args:
        batch_shape: Shape of experiments that run side by side.
        design_dim: Number D of design values.
        outcome_dim: Number O of outcome values.

    Example:
        >>> trials = Trials((), 2, 1)
        >>> trials.add(torch.tensor([1.0, 2.0]), torch.tensor([3.0]), cost=0.5)
        >>> trials.history(torch.float32).tolist(), trials.spent
        ([[1.0, 2.0, 3.0, 1.0]], 0.5)
    """

    def __init__(self, batch_shape: tuple[int, ...], design_dim: int, outcome_dim: int):
        self._designs, self._outcomes = _Rows(batch_shape, design_dim), _Rows(batch_shape, outcome_dim)
        self._costs: list[float | None] = []

    def __len__(self) -> int:
        return self._designs.num

    def add(self, design: Tensor, outcome: Tensor, cost: float | None = None) -> None:
        """Take up one trial: design (*batch, D), outcome (*batch, O)."""
        self._designs.add(design)
        self._outcomes.add(outcome)
        self._costs.append(cost)

    def without(self, number: int) -> tuple[Trials, float | None]:
        """The other trials, and the cost of the one that is left out."""
        others = Trials(tuple(self.designs.shape[:-2]), self.designs.shape[-1], self.outcomes.shape[-1])
        for i, cost in enumerate(self._costs):
            if i != number:
                others.add(*self[i], cost)
        return others, self._costs[number]

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """Design (*batch, D) and outcome (*batch, O) of one trial."""
        return self._designs.all[..., number, :].clone(), self._outcomes.all[..., number, :].clone()

    @property
    def designs(self) -> Tensor:
        """Designs as recorded, (*batch, n, D)."""
        return self._designs.all.clone()

    @property
    def outcomes(self) -> Tensor:
        """Outcomes as recorded, (*batch, n, O)."""
        return self._outcomes.all.clone()

    @property
    def spent(self) -> float:
        """Total cost."""
        return math.fsum(cost for cost in self._costs if cost is not None)

    def history(self, dtype: torch.dtype, length: int | None = None) -> Tensor:
        """All trials as a policy reads them, (*batch, n, D + O + 1), padded to `length` if given."""
        return pack_history(self._designs.all.to(dtype), self._outcomes.all.to(dtype), length)


class _Rows:
    """Rows (*batch, n, K) in a tensor with room for more; where it is full its room is doubled."""

    def __init__(self, batch_shape: tuple[int, ...], dim: int):
        self.num = 0
        self._room = torch.zeros(*batch_shape, 0, dim)

    @property
    def all(self) -> Tensor:
        """The rows, not a copy."""
        return self._room[..., : self.num, :]

    def add(self, row: Tensor) -> None:
        """Take up one row (*batch, K); the rows have the most precise dtype of all."""
        dtype = torch.promote_types(self._room.dtype, row.dtype) if self.num else row.dtype
        if self.num == self._room.shape[-2] or dtype != self._room.dtype:
            *batch_shape, _, dim = self._room.shape
            room = torch.zeros(*batch_shape, max(16, 2 * self.num), dim, dtype=dtype)
            room[..., : self.num, :] = self.all
            self._room = room
        self._room[..., self.num, :] = row
        self.num += 1
