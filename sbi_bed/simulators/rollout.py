"""Running an experiment in simulation: a policy proposes, the simulator answers, horizon times, for a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..utils.checks import as_finite_tensor, check_count
from ..utils.history import append_trial, empty_history, pack_history
from .base import DesignSimulator

__all__ = ["PolicySimulator", "Rollout", "SequentialPolicy", "rollout"]


class SequentialPolicy(Protocol):
    """What a rollout needs of a policy: a state that trials update and designs are read from."""

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> Any:
        """State before the first trial."""
        ...

    def update(self, state: Any, design: Tensor, outcome: Tensor) -> Any:
        """State after one more trial, design (*batch, D) and outcome (*batch, O)."""
        ...

    def propose(self, state: Any) -> Tensor:
        """Next design (*batch, D)."""
        ...

    def read(self, history: Tensor) -> Any:
        """State after a history (*batch, n, D + O + 1)."""
        ...


class _CallablePolicy:
    """A user's own callable history -> design as a `SequentialPolicy`; its state is the history itself."""

    def __init__(self, policy: Callable[[Tensor], Tensor], simulator: DesignSimulator):
        self.policy, self.simulator = policy, simulator

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> Tensor:
        return empty_history(self.simulator.design_dim, self.simulator.outcome_dim, batch_shape)

    def update(self, state: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        return append_trial(state, design, outcome)

    def propose(self, state: Tensor) -> Tensor:
        return self.policy(state)

    def read(self, history: Tensor) -> Tensor:
        return history


def as_sequential(policy: Any, simulator: DesignSimulator) -> Any:
    """`policy` itself, or wrapped where it is a plain callable history -> design.

    Raises:
        TypeError: If it is neither.
    """
    if hasattr(policy, "propose") and hasattr(policy, "update"):
        return policy
    if not callable(policy):
        raise TypeError(f"policy must be a callable history -> design, got {policy!r}.")
    return _CallablePolicy(policy, simulator)  # pyright: ignore[reportArgumentType]


class Rollout(NamedTuple):
    """Simulated trials: designs (*batch, T, D) and outcomes (*batch, T, O)."""

    designs: Tensor
    outcomes: Tensor


def rollout(
    simulator: DesignSimulator,
    policy: Any,
    theta: Tensor,
    num_trials: int,
    history: Tensor | None = None,
    detach_outcomes: bool | None = None,
) -> Rollout:
    """Simulate `num_trials` trials for each theta (*batch, P), after an optional history (n, D + O + 1) common to all.

    Differentiable in the policy's weights: through designs always, through outcomes unless they are detached, which by
    default those that are not reparameterised are.

    Raises:
        TypeError: If the policy is not callable, or proposes something other than a tensor.
        ValueError: If it proposes designs of another shape.
    """
    detach_outcomes = not simulator.reparameterized if detach_outcomes is None else detach_outcomes
    policy = as_sequential(policy, simulator)
    batch_shape = theta.shape[:-1]
    if history is None:
        state = policy.initial_state(batch_shape)
    else:
        state = policy.read(history.expand(*batch_shape, *history.shape[-2:]))
    designs, outcomes = [], []
    for trial in range(num_trials):
        design = _expand(policy.propose(state), batch_shape, simulator.design_dim)
        outcome = simulator(theta, design)
        if detach_outcomes:
            outcome = outcome.detach()
        if trial < num_trials - 1:
            state = policy.update(state, design, outcome)
        designs.append(design)
        outcomes.append(outcome)
    return Rollout(torch.stack(designs, dim=-2), torch.stack(outcomes, dim=-2))


def _expand(design: Any, batch_shape: torch.Size, design_dim: int) -> Tensor:
    if not isinstance(design, Tensor):
        raise TypeError(f"the policy must propose a tensor, got {type(design).__name__}.")
    if design.shape[-1:] != (design_dim,):
        raise ValueError(f"the policy proposed shape {tuple(design.shape)}, expected (..., {design_dim}).")
    try:
        return design.expand(*batch_shape, design_dim)
    except RuntimeError as err:
        raise ValueError(
            f"the policy proposed shape {tuple(design.shape)} for a batch of {tuple(batch_shape)}."
        ) from err


class PolicySimulator:
    """An experiment under a policy as an ordinary sbi simulator, theta -> history.

    Args:
        simulator: The experiment.
        policy: Policy, or any callable history -> design.
        horizon: Number T of trials.
        min_trials: Fewest trials kept. With `min_trials` < T each history ends after a random number of trials in
            [min_trials, T] and is padded, so that a posterior trained on them holds for any such length.

    Returns from a call: theta (B, P) -> x (B, T, D + O + 1), on theta's device.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> simulator = LocationFinding()
        >>> sense_at_origin = lambda history: torch.zeros(*history.shape[:-2], 2)
        >>> PolicySimulator(simulator, sense_at_origin, horizon=4)(simulator.prior.sample((3,))).shape
        torch.Size([3, 4, 4])
    """

    def __init__(self, simulator: DesignSimulator, policy: Any, horizon: int, min_trials: int | None = None):
        self.simulator = simulator
        self.policy = policy
        self.horizon = check_count(horizon, "horizon")
        self.min_trials = self.horizon if min_trials is None else check_count(min_trials, "min_trials", 0)
        if self.min_trials > self.horizon:
            raise ValueError(f"min_trials ({min_trials}) must not exceed the horizon ({horizon}).")

    @torch.no_grad()
    def __call__(self, theta: Any) -> Tensor:
        """Simulate one history for each theta (..., P), tensor or array.

        Raises:
            ValueError: If theta is not finite or not (..., P).
        """
        theta = as_finite_tensor(theta, "theta", last_dim=self.simulator.theta_dim).float()
        batch = theta.reshape(-1, theta.shape[-1])
        x = pack_history(*rollout(self.simulator, self.policy, batch, self.horizon))
        if self.min_trials < self.horizon:
            lengths = torch.randint(self.min_trials, self.horizon + 1, (len(batch), 1))
            x = x * (torch.arange(self.horizon) < lengths).unsqueeze(-1).to(x)
        return x.reshape(*theta.shape[:-1], *x.shape[1:])
