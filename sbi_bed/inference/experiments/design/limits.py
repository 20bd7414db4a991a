"""What an experiment may propose: designs inside their space, apart from each other, and within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ....simulators.design_space import DesignSpace
from ....utils.checks import as_finite_tensor, check_count
from .spacing import allowed_candidates, keep_apart, nearest_candidate

__all__ = ["DesignLimits"]

NOTHING_LEFT, BUDGET = "no allowed design is left", "budget"
_FROM_SKIPPED = 0.1  # distance from a skipped design in a continuous space


class DesignLimits:
    """Turns a policy's proposals into designs that an experiment allows; see `AdaptiveExperiment` for the meaning.

    Args:
        space: The design space.
        min_distance: Smallest distance between designs, in standardised coordinates.
        design_cost: Callable design (D,) -> cost.
        budget: Largest total cost.
        no_repeat_within: From how many of the last designs a design keeps its distance; from all if None.

    Raises:
        TypeError: If `design_cost` cannot be called.
        ValueError: If a number is negative or not finite, there is a budget without a cost, or in a continuous space a
            number of trials without a distance.
    """

    def __init__(
        self,
        space: DesignSpace,
        min_distance: float = 0.0,
        design_cost: Callable[[Tensor], Any] | None = None,
        budget: float | None = None,
        no_repeat_within: int | None = None,
    ):
        if design_cost is not None and not callable(design_cost):
            raise TypeError(f"design_cost must be a callable design -> cost, got {design_cost!r}.")
        if budget is not None and design_cost is None:
            raise ValueError("a budget needs design_cost=, a callable design -> cost.")
        for value, name in ((min_distance, "min_distance"), (budget, "budget")):
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be finite and not negative, got {value}.")
        if no_repeat_within is not None:
            no_repeat_within = check_count(no_repeat_within, "no_repeat_within", 0)
            if min_distance == 0 and not space.is_finite:
                raise ValueError(
                    "in a continuous space no_repeat_within= needs min_distance=, the distance below which a design counts "
                    "as a repeat."
                )
        self.space, self.min_distance, self.design_cost, self.budget = space, min_distance, design_cost, budget
        self.no_repeat_within = no_repeat_within
        self._candidate_costs: tuple[Tensor, Tensor] | None = None

    @property
    def any(self) -> bool:
        """Whether a proposal can fail."""
        return self._keeps_apart or self.budget is not None

    @property
    def _keeps_apart(self) -> bool:
        return self.min_distance > 0 or bool(self.no_repeat_within)

    def cost(self, design: Tensor) -> float | None:
        """Cost of a design (D,), None without a cost; a `ValueError` if it is not a number, or negative."""
        if self.design_cost is None:
            return None
        cost = as_finite_tensor(self.design_cost(design.clone()), "design_cost(design)")
        if cost.numel() != 1 or cost.item() < 0:
            raise ValueError(f"design_cost must return one cost that is not negative, got {cost.tolist()}.")
        return cost.item()

    def choose(
        self,
        policy: Any,
        state: Any,
        earlier: Tensor,
        skipped: Tensor,
        history: Tensor,
        spent: float,
        device: torch.device,
    ) -> Tensor | str:
        """The next design (*batch, D), or why there is none.

        A policy that chooses among candidates by itself is asked by `propose_among(state, allowed)`, `allowed` a
        boolean (*batch, N) over its `candidates`. Where the space depends on the history, the policy is told the present
        one.

        Args:
            policy: A sequential policy.
            state: Its state.
            earlier: Designs run or in flight, (*batch, n, D).
            skipped: Designs that must not be proposed again, (*batch, k, D).
            history: Trials, (*batch, n, D + O + 1), that the space may depend on.
            spent: Cost so far.
            device: Where the policy is.
        """
        space = self.space.given(history.to(device))
        told = (space,) if self.space.depends_on_history else ()
        batch_shape = earlier.shape[:-2]
        chooses = hasattr(policy, "propose_among") and policy.candidates is not None
        candidates = policy.candidates if chooses else self.space.candidates
        taken, distances = self._taken(
            earlier, skipped, 0.0 if candidates is not None or self.space.is_finite else _FROM_SKIPPED
        )
        if candidates is not None and (len(distances) or self.budget is not None):
            allowed = self._allowed(candidates, taken, distances, spent)
            if isinstance(allowed, str):
                return allowed
            if chooses:
                return self._check(policy.propose_among(state, allowed.to(device)), space, batch_shape)
            design = self._check(policy.propose(state, *told), space, batch_shape)
            return design if allowed.all() else nearest_candidate(self.space, candidates, design, allowed)
        design = self._check(policy.propose(state, *told), space, batch_shape)
        if len(distances):
            rows = design.reshape(-1, self.space.dim)
            pasts = taken.reshape(len(rows), *taken.shape[-2:])
            spaces = [self.space.given(past) for past in history.reshape(len(rows), *history.shape[-2:])]
            moved = [
                keep_apart(self.space, row, past, distances, within=within)
                for row, past, within in zip(rows, pasts, spaces, strict=True)
            ]
            kept = [row for row in moved if row is not None]
            if len(kept) < len(moved):
                return NOTHING_LEFT
            design = torch.stack(kept).reshape(design.shape)
        if self.budget is not None and not self._affordable(self.cost(design), spent):
            return BUDGET
        return design

    def _taken(self, earlier: Tensor, skipped: Tensor, from_skipped: float) -> tuple[Tensor, Tensor]:
        """Designs (*batch, m, D) to keep a distance (m,) from."""
        num = earlier.shape[-2] if self.no_repeat_within is None else min(self.no_repeat_within, earlier.shape[-2])
        near = earlier[..., earlier.shape[-2] - (num if self._keeps_apart else 0) :, :]
        distances = [self.min_distance] * near.shape[-2] + [max(self.min_distance, from_skipped)] * skipped.shape[-2]
        return torch.cat([near, skipped], dim=-2), torch.tensor(distances, dtype=torch.float64)

    def _allowed(self, candidates: Tensor, taken: Tensor, distances: Tensor, spent: float) -> Tensor | str:
        """Which candidates (N, D) may be proposed, (*batch, N), or why none."""
        allowed = allowed_candidates(self.space, candidates, taken, distances)
        if not allowed.any(-1).all():
            return NOTHING_LEFT
        if self.budget is not None:
            if self._candidate_costs is None or self._candidate_costs[0] is not candidates:
                costs = torch.tensor([self.cost(c) for c in candidates], dtype=torch.float64)
                self._candidate_costs = candidates, costs
            allowed = allowed & self._affordable(self._candidate_costs[1], spent)
        return allowed if allowed.any(-1).all() else BUDGET

    def _affordable(self, cost: Any, spent: float) -> Any:
        """Whether the rest of the budget pays `cost`, up to rounding."""
        budget: float = self.budget  # pyright: ignore[reportAssignmentType]
        return cost <= budget - spent + 1e-6 * budget

    def _check(self, design: Any, space: DesignSpace, batch_shape: torch.Size) -> Tensor:
        shape = (*batch_shape, self.space.dim)
        try:
            return space.check(design).detach().cpu().expand(shape).clone()
        except (TypeError, ValueError, RuntimeError) as err:
            raise ValueError(f"the policy must propose designs {shape} inside the design space: {err}") from err
