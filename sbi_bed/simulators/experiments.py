"""Batches of simulated experiments: where θ comes from, which trials went before, and what is simulated.

Everything that trains a policy simulates through here: θ ~ prior, or from draws of a posterior; trials under a policy,
after an optional history that all experiments of the batch share.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..utils.history import continue_history
from .base import DesignSimulator
from .rollout import Rollout, rollout

__all__ = ["Batch", "Experiments", "sampler_of"]


class Batch(NamedTuple):
    """Simulated experiments: theta (B, P), trials, and what they were simulated in the context of, if anything.

    `log_choices` (B, T) are the log-probabilities of what was drawn in the designs, attached; None where nothing was.
    """

    theta: Tensor
    trials: Rollout
    context: Any = None
    log_choices: Tensor | None = None


@dataclass
class Experiments:
    """The experiments that a policy is trained on.

    Attributes:
        simulator: What is simulated.
        num_trials: Number of trials to simulate.
        history: Trials before these, common to all experiments, (n, D + O + 1), or None.
        prior: Where θ is drawn from: a distribution, draws (N, P), or a callable num → theta (num, P); the simulator's prior
            if None.
        state: Hidden states (N, S) that belong to the draws `prior` (N, P), or None.
        device: Where all of it is.
        has_own_prior: Whether θ is drawn from something other than the simulator's prior.

    Raises:
        TypeError: If `prior` is of another kind.
        ValueError: If there are states, and the prior is not draws, one for each state.

    Example:
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import LocationFinding
        >>> simulator = LocationFinding()
        >>> experiments = Experiments(simulator, 3)
        >>> batch = experiments.run(RandomPolicy(simulator), 5)
        >>> experiments.histories(batch).shape
        torch.Size([5, 3, 4])
    """

    simulator: DesignSimulator
    num_trials: int
    history: Tensor | None = None
    prior: Any = None
    state: Tensor | None = None
    device: torch.device | str = "cpu"

    def __post_init__(self):
        self.device = torch.device(self.device)
        self.has_own_prior = self.prior is not None
        self.prior = _to_device(self.prior if self.has_own_prior else self.simulator.prior, self.device)
        self.history = None if self.history is None else self.history.to(self.device)
        self._sample_theta = sampler_of(self.prior)
        if self.state is not None:
            if not isinstance(self.prior, Tensor) or len(self.prior) != len(self.state):
                raise ValueError("state= needs prior=, draws of theta (N, P), one for each of its N states.")
            self.state = self.state.to(self.device)

    def run(self, policy: Any, num: int, detach_outcomes: bool | None = None, num_trials: int | None = None) -> Batch:
        """Simulate `num` experiments under a policy, their first `num_trials` trials or all; as for `rollout`."""
        theta, state = self._sample(num)
        num_trials = self.num_trials if num_trials is None else num_trials
        return Batch(theta, rollout(self.simulator, policy, theta, num_trials, self.history, detach_outcomes, state))

    def sample_contrastive(self, batch: Batch, num: int) -> Tensor:
        """Draws of θ that are independent of the batch: (num, P) shared by all histories, or (num, B, P)."""
        return self._sample(num)[0]

    def histories(self, batch: Batch) -> Tensor:
        """Histories (B, n + T, D + O + 1) of a batch, with the trials before."""
        return continue_history(self.history, *batch.trials)

    def _sample(self, num: int) -> tuple[Tensor, Tensor | None]:
        """Theta (num, P), and the hidden states (num, S) that belong to it."""
        if self.state is None:
            return self._sample_theta(num).to(self.device), None
        index = torch.randint(len(self.prior), (num,), device=self.device)
        return self.prior[index], self.state[index]


def sampler_of(distribution: Any) -> Callable[[int], Tensor]:
    """num → theta (num, P), from a distribution, a callable, or draws (N, P) of which fresh ones are chosen."""
    if isinstance(distribution, Tensor):
        if distribution.ndim != 2 or len(distribution) == 0:
            raise ValueError(f"draws of theta must have shape (N, P), N > 0, got {tuple(distribution.shape)}.")
        return lambda num: distribution[torch.randint(len(distribution), (num,))]
    if hasattr(distribution, "sample"):
        return lambda num: distribution.sample((num,))
    if not callable(distribution):
        raise TypeError(
            f"prior must be a distribution, draws (N, P), or a callable num -> theta, got {distribution!r}."
        )
    return distribution  # pyright: ignore[reportReturnType]


def _to_device(value: Any, device: torch.device) -> Any:
    """A tensor, or a copy of a distribution with all its tensors, on `device`; anything else, and on the CPU, as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if device.type == "cpu" or not isinstance(value, Distribution):
        return value
    moved = copy.copy(value)
    for name, part in vars(value).items():
        if isinstance(part, (Tensor, Distribution)):
            setattr(moved, name, _to_device(part, device))
    return moved
