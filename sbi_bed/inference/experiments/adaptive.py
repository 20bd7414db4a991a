"""A live experiment: ask for a design, record what happened, look at the posterior.

With a journal, what was recorded is on the disk before `record` returns, and `load` continues after a crash with the
very design that would have come next: the file holds the policy, the seed and every trial.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...simulators.base import DesignSimulator
from ...simulators.rollout import as_sequential
from ...utils.checks import as_finite_tensor, check_count
from ...utils.history import pack_history
from ...utils.seeding import seeded
from .journal import Journal, plain_to_tensor, tensor_to_plain
from .proposing import Limits, choose_design
from .saved import SavedExperiment, plain_to_policy, policy_to_plain
from .stopping import as_rule, restore_rule

__all__ = ["AdaptiveExperiment"]


class AdaptiveExperiment(SavedExperiment):
    """Runs one experiment, or many side by side, under a design policy.

    Args:
        policy: Policy, or any callable history -> design. It is not copied: do not train it while the experiment runs.
        simulator: The experiment: its design space, outcome space, prior and, for `posterior`, likelihood.
        horizon: Largest number T of trials.
        journal: New file that every trial is written to before `record` returns. None keeps trials in memory only.
        seed: Seed of designs that involve chance; drawn from torch's global generator if None.
        min_distance: Smallest distance between any two designs, Euclidean in the design space's standardised
            coordinates. A proposal that is too close is moved to the nearest allowed place. Among candidates any positive
            value means that none is used twice. The experiment stops when nothing is allowed.
        design_cost: Callable design (..., D) -> cost (...), not negative.
        budget: Largest total cost. Among candidates only those that the rest of the budget can pay are proposed, and the
            experiment stops when there is none. In a continuous space it stops at the first proposal that costs more than
            the rest; `done` then makes that proposal. A design that was run anyway counts in full.
        stop_when: Rule asked after each trial, see `sbi_bed.inference.experiments.stopping`, or any callable
            experiment -> bool.
        num_experiments: Number B of independent deployments run side by side, for benchmarks; every tensor then has a
            leading dimension B. Budget and stopping rule are for single experiments.

    Attributes:
        stopped_because: Why the experiment is done, or None.
        seed: The seed.

    Raises:
        TypeError: If policy, simulator, design_cost or stop_when are not what they should be.
        ValueError: If the policy does not fit the simulator or the horizon, an option is out of range, or the journal
            exists already.

    Example:
        >>> import torch
        >>> from sbi_bed.policies import DeepSetsPolicy
        >>> from sbi_bed.simulators import LocationFinding
        >>> simulator = LocationFinding()
        >>> experiment = AdaptiveExperiment(DeepSetsPolicy(simulator), simulator, horizon=3, seed=0)
        >>> while not experiment.done:
        ...     design = experiment.next_design()
        ...     experiment.record(simulator(torch.zeros(2), design))
        >>> experiment.history.shape, experiment.stopped_because
        (torch.Size([3, 4]), 'horizon')
    """

    _options: dict[str, Any] = {}  # noqa: RUF012  a subclass sets its own arguments, plain data, before super().__init__

    def __init__(
        self,
        policy: Any,
        simulator: DesignSimulator,
        horizon: int,
        journal: str | Path | None = None,
        *,
        seed: int | None = None,
        min_distance: float = 0.0,
        design_cost: Callable[[Tensor], Any] | None = None,
        budget: float | None = None,
        stop_when: Any = None,
        num_experiments: int | None = None,
    ):
        if not isinstance(simulator, DesignSimulator):
            raise TypeError(f"simulator must be a DesignSimulator, got {simulator!r}.")
        self.simulator = simulator
        self.horizon = check_count(horizon, "horizon")
        self.seed = int(torch.randint(2**62, ())) if seed is None else check_count(seed, "seed", 0)
        self.min_distance = _not_negative(min_distance, "min_distance")
        self.design_cost = design_cost
        self.budget = None if budget is None else _not_negative(budget, "budget")
        self.num_experiments = None if num_experiments is None else check_count(num_experiments, "num_experiments")
        self._batch_shape = () if num_experiments is None else (self.num_experiments,)
        self._rule = None if stop_when is None else as_rule(stop_when)
        self._check_options()
        self._designs: list[Tensor] = []
        self._outcomes: list[Tensor] = []
        self._costs: list[float] = []
        self._entries: list[dict[str, Any]] = []
        self._adoptions: list[dict[str, Any]] = []
        self._pending: Tensor | None = None
        self._state: Any = None
        self.stopped_because: str | None = None
        self._take(policy)
        self._header = self._describe()
        self._journal = None if journal is None else Journal.create(journal, self._header)

    # ---- ask and tell

    def next_design(self) -> Tensor:
        """The next design (D,), or (B, D) for a batch; the same one until `record` is called.

        Raises:
            ValueError: If the experiment is done, or the policy proposes something outside the design space.
        """
        self._prepare()
        if self._pending is None:
            raise ValueError(f"the experiment is done ({self.stopped_because}); there is no next design.")
        return self._pending.clone()

    def record(self, outcome: Any, design: Any = None) -> None:
        """Record what happened; with a journal it is on the disk when this returns.

        Args:
            outcome: Outcome (O,), or (B, O) for a batch.
            design: The design (D,) that was really run, where it is not the one that `next_design` gave.

        Raises:
            ValueError: If outcome or design have the wrong shape, hold NaN or infinity or lie outside their space, no
                design was asked for, or the experiment is done.
            OSError: If the journal cannot be written. Then nothing is recorded, and the call may be repeated.
            RuntimeError: If the stopping rule fails. The trial is then recorded.
        """
        if self.stopped_because is not None:
            raise ValueError(f"the experiment is done ({self.stopped_because}); nothing more can be recorded.")
        if design is None and self._pending is None:
            raise ValueError("nothing to record: call next_design() first, or give design=, the design that was run.")
        run = self._pending if design is None else self._checked(self.simulator.design_space.check, design, "design")
        outcome = self._checked(self.simulator.check_outcome, outcome, "outcome")
        cost = self._cost(run)
        entry = {"event": "trial", "design": tensor_to_plain(run), "outcome": tensor_to_plain(outcome)}
        self._write(entry if cost is None else entry | {"cost": cost})
        self._add_trial(run, outcome, cost)
        self._ask_rule()

    @property
    def done(self) -> bool:
        """Whether no further trial is to be run; `stopped_because` says why."""
        if self.min_distance > 0 or self.budget is not None:
            self._prepare()  # whether a design is left shows when it is proposed
        return self.stopped_because is not None

    # ---- what is known

    @property
    def num_trials(self) -> int:
        """Number of trials recorded."""
        return len(self._designs)

    @property
    def designs(self) -> Tensor:
        """Designs as recorded, (n, D) or (B, n, D)."""
        return self._stack(self._designs, self.simulator.design_dim)

    @property
    def outcomes(self) -> Tensor:
        """Outcomes as recorded, (n, O) or (B, n, O)."""
        return self._stack(self._outcomes, self.simulator.outcome_dim)

    @property
    def history(self) -> Tensor:
        """All trials as the policy reads them, padded to (horizon, D + O + 1), or (B, horizon, D + O + 1)."""
        return pack_history(self.designs.to(self._dtype), self.outcomes.to(self._dtype), self.horizon)

    @property
    def spent(self) -> float:
        """Total cost of the designs run so far; 0 without `design_cost`."""
        return math.fsum(self._costs)

    def posterior(
        self, sample_with: Any = "smc", *, num_trials: int | None = None, experiment: int | None = None, **kwargs: Any
    ) -> Any:
        """An ordinary sbi posterior given the trials so far.

        Args:
            sample_with: "smc", "mcmc" or "importance", see `likelihood_posterior`; or a trained sbi posterior over
                histories, of which a copy is returned with this history as its default x.
            num_trials: Look at the first `num_trials` trials only.
            experiment: Which one, for a batch of experiments.
            **kwargs: Further arguments of `likelihood_posterior`.

        Raises:
            ValueError: If the simulator has no likelihood and no trained posterior is given, or the index is missing.
        """
        history = self.history
        if self._batch_shape:
            if experiment is None:
                raise ValueError(f"say which of the {self.num_experiments} experiments: posterior(experiment=0).")
            history = history[experiment]
        if num_trials is not None:
            history = history.clone()
            history[check_count(num_trials, "num_trials", 0) :] = 0
        if not isinstance(sample_with, str):
            return _given(sample_with, history)
        from ..posteriors.likelihood_posterior import likelihood_posterior

        return likelihood_posterior(self.simulator, history, sample_with=sample_with, **kwargs)

    def seed_for(self, purpose: str) -> int:
        """A seed that depends on the experiment's seed and a purpose, and on nothing else."""
        return int.from_bytes(hashlib.blake2b(f"{self.seed}/{purpose}".encode(), digest_size=8).digest(), "big") >> 2

    # ---- for subclasses

    def _before_proposal(self) -> None:
        """Called before each new proposal; a subclass may call `_adopt_policy` here."""

    def _adopt_policy(self, policy: Any, **details: Any) -> None:
        """Go on with `policy`, and journal it; None keeps the present one and journals the details alone.

        Args:
            policy: New policy, of a kind that `load` can restore from the first one.
            **details: Plain data about it, kept in `_adoptions` as {"num_trials": ..., **details}.
        """
        plain = None if policy is None else policy_to_plain(policy)
        self._write({"event": "policy", "num_trials": self.num_trials, "policy": plain, "details": details})
        self._adoptions.append({"num_trials": self.num_trials, **details})
        if policy is not None:
            self._take(policy)

    # ---- inside

    def _take(self, policy: Any) -> None:
        self.policy = policy
        self._sequential = as_sequential(policy, self.simulator)
        fits = getattr(policy, "horizon", None)
        if isinstance(fits, int) and fits < self.horizon:
            raise ValueError(f"the policy was built for {fits} trials, the horizon is {self.horizon}.")
        for name in ("design_dim", "outcome_dim"):
            expected = getattr(self.simulator, name)
            if getattr(policy, name, expected) != expected:
                raise ValueError(f"the policy has {name} {getattr(policy, name)}, the simulator {expected}.")
        weights = [p for p in policy.parameters() if p.is_floating_point()] if isinstance(policy, nn.Module) else []
        like = weights[0] if weights else torch.zeros(())
        self._dtype, self._device = like.dtype, like.device
        self._state, self._pending = None, None

    @torch.no_grad()
    def _update(self, state: Any, trial: int) -> Any:
        """State after trial number `trial` (from 0), given that before it; a fresh one for trial −1."""
        with seeded(self.seed_for(f"update {trial}"), self._device):
            if trial < 0:
                return self._sequential.initial_state(self._batch_shape)
            design, outcome = (x[trial].to(self._device, self._dtype) for x in (self._designs, self._outcomes))
            return self._sequential.update(state, design, outcome)

    def _prepare(self) -> None:
        """Propose the next design, unless there is one already or the experiment is done."""
        if self._pending is not None or self.stopped_because is not None:
            return
        self._before_proposal()
        if self._state is None:
            state = None
            for trial in range(-1, self.num_trials):
                state = self._update(state, trial)
            self._state = state
        with torch.no_grad(), seeded(self.seed_for(f"design {self.num_trials}"), self._device):
            proposed = self._choose()
        if isinstance(proposed, str):
            self._stop(proposed)
        else:
            self._pending = proposed

    def _choose(self) -> Tensor | str:
        """The next design, or why there is none."""
        space, allowed = self.simulator.design_space, None
        rest = None if self.budget is None else self.budget - self.spent
        if space.candidates is not None and (self.min_distance > 0 or rest is not None):
            allowed = torch.ones(*self._batch_shape, len(space.candidates), dtype=torch.bool)
            if self.min_distance > 0:
                allowed &= allowed_candidates(space, self.designs, self.min_distance)
            if not allowed.any(-1).all():
                return "no allowed design is left"
            if rest is not None:
                allowed &= torch.tensor([self._cost(c) <= rest for c in space.candidates])  # pyright: ignore
            if not allowed.any():
                return "budget"
        if allowed is not None and not allowed.all() and hasattr(self._sequential, "propose_among"):
            return self._checked_proposal(self._sequential.propose_among(self._state, allowed.to(self._device)))
        design = self._checked_proposal(self._sequential.propose(self._state))
        if allowed is not None:
            return design if allowed.all() else nearest_candidate(space, design, allowed)
        if self.min_distance > 0:
            rows, earlier = design.reshape(-1, space.dim), self.designs.reshape(-1, self.num_trials, space.dim)
            moved = [keep_apart(space, row, past, self.min_distance) for row, past in zip(rows, earlier, strict=True)]
            if any(row is None for row in moved):
                return "no allowed design is left"
            design = torch.stack(moved).reshape(design.shape)  # pyright: ignore[reportArgumentType]
        if rest is not None and self._cost(design) > rest:  # pyright: ignore[reportOptionalOperand]
            return "budget"
        return design

    def _checked_proposal(self, design: Any) -> Tensor:
        try:
            design = self.simulator.design_space.check(design)
            return design.expand(*self._batch_shape, self.simulator.design_dim).detach().cpu().clone()
        except (TypeError, ValueError, RuntimeError) as err:
            shape = (*self._batch_shape, self.simulator.design_dim)
            raise ValueError(f"the policy must propose designs {shape} of the design space: {err}") from err

    def _checked(self, check: Callable[[Any], Tensor], value: Any, name: str) -> Tensor:
        """A design or outcome as given, exact, of the right shape and inside its space, also in the policy's precision."""
        dim = self.simulator.design_dim if name == "design" else self.simulator.outcome_dim
        value = as_finite_tensor(value, name, last_dim=dim)
        if value.shape != (*self._batch_shape, dim):
            raise ValueError(f"{name} must have shape {(*self._batch_shape, dim)}, got {tuple(value.shape)}.")
        value = value.detach().cpu().clone()
        check(value)
        check(value.to(self._dtype))
        return value

    def _cost(self, design: Tensor) -> float | None:
        if self.design_cost is None:
            return None
        cost = as_finite_tensor(self.design_cost(design.clone()), "design_cost(design)")
        if cost.numel() != 1 or cost.item() < 0:
            raise ValueError(f"design_cost must return one cost that is not negative, got {cost.tolist()}.")
        return cost.item()

    def _add_trial(self, design: Tensor, outcome: Tensor, cost: float | None) -> None:
        self._designs.append(design)
        self._outcomes.append(outcome)
        self._costs += [] if cost is None else [cost]
        self._pending = None
        if self.num_trials == self.horizon:
            self.stopped_because = "horizon"
        elif self._state is not None:
            try:
                self._state = self._update(self._state, self.num_trials - 1)
            except Exception:  # the trial is safe; the error comes back where it belongs, in next_design
                self._state = None

    def _ask_rule(self) -> None:
        if self._rule is None or self.stopped_because is not None:
            return
        try:
            holds = bool(self._rule(self))
        except Exception as err:
            raise RuntimeError(f"the trial is recorded, but the stopping rule '{self._rule}' failed: {err}") from err
        if holds:
            self._stop(str(self._rule))

    def _stop(self, reason: str) -> None:
        self._write({"event": "stop", "reason": reason})
        self.stopped_because = reason

    def _stack(self, values: list[Tensor], dim: int) -> Tensor:
        return torch.stack(values, dim=-2) if values else torch.zeros(*self._batch_shape, 0, dim)
