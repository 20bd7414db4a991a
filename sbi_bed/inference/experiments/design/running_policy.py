"""A design policy in a running experiment: checks that it fits, and keeps its state from one trial to the next.

Each trial updates the state under a seed of its own, so that a state made again from all trials is the one that was kept.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ....simulators.base import DesignSimulator
from ....simulators.rollout import as_sequential, warn_beyond_training
from ....utils.seeding import seed_for, seeded
from .trials import Trials

__all__ = ["RunningPolicy"]


class RunningPolicy:
    """A policy and its state after the trials so far.

    Args:
        policy: Policy, or any callable history -> design.
        simulator: The experiment.
        horizon: Its largest number of trials.
        batch_shape: Shape of experiments that run side by side.
        seed: The experiment's seed.

    Attributes:
        policy: The policy as a sequential one.
        dtype: What it reads.
        device: Where it is.

    Raises:
        TypeError: If it is not a policy.
        ValueError: If it does not fit the simulator or the horizon.
    """

    def __init__(self, policy: Any, simulator: DesignSimulator, horizon: int, batch_shape: tuple[int, ...], seed: int):
        self.policy = as_sequential(policy, simulator)
        trials = getattr(policy, "horizon", None)
        if isinstance(trials, int) and trials < horizon:
            raise ValueError(f"the policy was built for {trials} trials, the horizon is {horizon}.")
        warn_beyond_training(policy, horizon)
        for name in ("design_dim", "outcome_dim"):
            expected = getattr(simulator, name)
            if getattr(policy, name, expected) != expected:
                raise ValueError(f"the policy has {name} {getattr(policy, name)}, the simulator {expected}.")
        weights = [p for p in policy.parameters() if p.is_floating_point()] if isinstance(policy, nn.Module) else []
        like = weights[0] if weights else torch.zeros((), dtype=simulator.dtype)
        self.dtype, self.device = like.dtype, like.device
        self._batch_shape, self._seed = batch_shape, seed
        self._state: Any = None

    def restarted(self) -> RunningPolicy:
        """The same policy, with no state kept."""
        other = copy.copy(self)
        other._state = None
        return other

    def state_after(self, trials: Trials, imagined: Iterable[tuple[Tensor, Tensor]] = ()) -> Any:
        """The state after all trials, read again from the first one if none is kept, and then after imagined ones.

        Args:
            trials: The trials so far.
            imagined: Designs (*batch, D) and outcomes (*batch, O) to go on with; the state that is kept has none of them.
        """
        if self._state is None:
            state = None
            for number in range(-1, len(trials)):
                state = self._update(state, number, *(trials[number] if number >= 0 else ()))
            self._state = state
        state = self._state
        for number, trial in enumerate(imagined, len(trials)):
            state = self._update(state, number, *trial)
        return state

    def take_up_last(self, trials: Trials) -> None:
        """Update the state, if one is kept, by the last of the trials."""
        state, self._state = self._state, None
        if state is not None:
            with contextlib.suppress(Exception):  # the trial is safe; `state_after` will raise the error again
                self._state = self._update(state, len(trials) - 1, *trials[-1])

    @torch.no_grad()
    def _update(self, state: Any, number: int, *trial: Tensor) -> Any:
        """State after trial `number` (from 0), its design and outcome, given that before it; a fresh one for trial −1."""
        with seeded(seed_for(self._seed, f"update {number}"), self.device):
            if number < 0:
                return self.policy.initial_state(self._batch_shape)
            return self.policy.update(state, *(x.to(self.device, self.dtype) for x in trial))
