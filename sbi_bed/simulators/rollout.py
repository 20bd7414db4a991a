"""Running an experiment in simulation: a policy proposes, the simulator answers, horizon times, for a whole batch.

The hidden state of a run, if there is one, is passed on from trial to trial. Where the design space depends on the
history, the policy is told the space of each design.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..utils.checks import as_finite_tensor, check_count
from ..utils.history import append_trial, empty_history, pack_history
from ..utils.warn_user import warn_user
from .base import DesignSimulator
from .design_space import DesignSpace

__all__ = ["PolicySimulator", "Rollout", "SequentialPolicy", "rollout", "warn_beyond_training"]


class SequentialPolicy(Protocol):
    """What a rollout needs of a policy: a state, updated by each trial, from which the next design is computed."""

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> Any:
        """State before the first trial."""
        ...

    def update(self, state: Any, design: Tensor, outcome: Tensor) -> Any:
        """State after one more trial, design (*batch, D) and outcome (*batch, O)."""
        ...

    def propose(self, state: Any, *space: DesignSpace) -> Tensor:
        """Next design (*batch, D); in `space`, which is given where the design space depends on the history."""
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

    def propose(self, state: Tensor, *space: DesignSpace) -> Tensor:
        return self.policy(state)

    def read(self, history: Tensor) -> Tensor:
        return history


def as_sequential(policy: Any, simulator: DesignSimulator) -> Any:
    """`policy` itself, or wrapped where it is a plain callable history -> design.

    Raises:
        TypeError: If it is neither, or cannot be told the space of a design where that depends on the history.
    """
    if hasattr(policy, "propose") and hasattr(policy, "update"):
        if simulator.design_space.depends_on_history:
            _check_takes_space(policy.propose)
        return policy
    if not callable(policy):
        raise TypeError(f"policy must be a callable history -> design, got {policy!r}.")
    return _CallablePolicy(policy, simulator)  # pyright: ignore[reportArgumentType]


def _check_takes_space(propose: Callable[..., Tensor]) -> None:
    try:
        inspect.signature(propose).bind(None, None)
    except TypeError as err:
        raise TypeError(
            "the design space depends on the history: the policy needs propose(state, space), space being that of the "
            "next design."
        ) from err


def warn_beyond_training(policy: Any, horizon: int) -> None:
    """Warn if a policy is to run for more trials than it was trained for (its `trained_horizon`, where `DAD` set it)."""
    trained = getattr(policy, "trained_horizon", None)
    if trained is not None and horizon > trained:
        warn_user(
            f"the policy was trained for {trained} trials and is asked for {horizon}: what it proposes after trial "
            f"{trained} was never trained. Train it with DAD(simulator, horizon={horizon})."
        )


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
    state: Tensor | None = None,
) -> Rollout:
    """Simulate `num_trials` trials for each theta (*batch, P), after an optional history (n, D + O + 1) common to all.

    Theta and designs have theta's precision, which should be the prior's; a policy's net computes in its own.

    Differentiable in the policy's weights: through designs always, through outcomes unless they are detached, which by
    default those that are not reparameterised are.

    Args:
        simulator: The experiment.
        policy: Policy, or any callable history -> design.
        theta: Parameters (*batch, P).
        num_trials: Number of trials.
        history: Trials before, (n, D + O + 1).
        detach_outcomes: Whether outcomes pass on no gradient.
        state: Hidden state (*batch, S) to go on from, for a simulator that has one; `simulator.start(theta)` if None.

    Raises:
        TypeError: If the policy is not callable, or proposes something other than a tensor.
        ValueError: If it proposes designs of another shape, or a run that shares a hidden state is to go on from a
            history without it.

    Example:
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import LocationFinding
        >>> simulator = LocationFinding()
        >>> trials = rollout(simulator, RandomPolicy(simulator), simulator.prior.sample((5,)), num_trials=3)
        >>> trials.designs.shape, trials.outcomes.shape
        (torch.Size([5, 3, 2]), torch.Size([5, 3, 1]))
    """
    detach_outcomes = not simulator.reparameterized if detach_outcomes is None else detach_outcomes
    policy = as_sequential(policy, simulator)
    batch_shape = theta.shape[:-1]
    if history is None:
        known = policy.initial_state(batch_shape)
    else:
        history = history.expand(*batch_shape, *history.shape[-2:])
        known = policy.read(history)
    state = _starting_state(simulator, theta, history) if state is None else state
    past = _trials_before(simulator, theta, history) if simulator.design_space.depends_on_history else None
    designs, outcomes = [], []
    for trial in range(num_trials):
        where = () if past is None else (simulator.design_space.given(past),)
        design = _expand(policy.propose(known, *where), batch_shape, simulator.design_dim).to(theta.dtype)
        outcome, state = simulator.step(theta, design, state)
        if detach_outcomes:
            outcome = outcome.detach()
        if trial < num_trials - 1:
            known = policy.update(known, design, outcome)
            past = None if past is None else append_trial(past, design, outcome)
        designs.append(design)
        outcomes.append(outcome)
    return Rollout(torch.stack(designs, dim=-2), torch.stack(outcomes, dim=-2))


def _starting_state(simulator: DesignSimulator, theta: Tensor, history: Tensor | None) -> Tensor | None:
    if simulator.has_state and history is not None and history[..., -1].any():
        raise ValueError(
            "the trials of this simulator share a hidden state, which a history does not hold: give state=, the one after "
            "its last trial, to go on from there."
        )
    return simulator.start(theta)


def _trials_before(simulator: DesignSimulator, theta: Tensor, history: Tensor | None) -> Tensor:
    """The trials (*batch, n, D + O + 1) of a history, without padding."""
    if history is None:
        return empty_history(simulator.design_dim, simulator.outcome_dim, theta.shape[:-1]).to(theta)
    return history[..., : int(history[..., -1].sum(-1).max()), :].to(theta) if history.numel() else history.to(theta)


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

    Returns from a call: theta (B, P) -> x (B, T, D + O + 1), on theta's device, float32 unless both theta and the prior
    are float64. What is simulated is computed in the precision of the prior.

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
        warn_beyond_training(policy, self.horizon)

    @torch.no_grad()
    def __call__(self, theta: Any) -> Tensor:
        """Simulate one history for each theta (..., P), tensor or array.

        Raises:
            ValueError: If theta is not finite or not (..., P).
        """
        theta = as_finite_tensor(theta, "theta", last_dim=self.simulator.theta_dim)
        batch = theta.reshape(-1, theta.shape[-1]).to(self.simulator.dtype)
        dtype = min(theta.dtype, self.simulator.dtype, key=lambda d: torch.finfo(d).bits)  # nets want float32
        x = pack_history(*rollout(self.simulator, self.policy, batch, self.horizon)).to(dtype)
        if self.min_trials < self.horizon:
            lengths = torch.randint(self.min_trials, self.horizon + 1, (len(batch), 1))
            x = x * (torch.arange(self.horizon) < lengths).unsqueeze(-1).to(x)
        return x.reshape(*theta.shape[:-1], *x.shape[1:])
