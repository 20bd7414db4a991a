"""A live experiment: ask for a design, record what happened, look at the posterior.

With a journal, what was recorded is on the disk before `record` returns, and `load` continues after a crash with the
very design that would have come next: the file holds the policy, the seed and every trial.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....simulators.base import DesignSimulator
from ....utils.checks import as_finite_tensor, check_count
from ....utils.renamed import current_arguments
from ....utils.seeding import seed_for, seeded
from ..journal import Journal, plain_to_tensor, tensor_to_plain
from ..saved import SavedExperiment, plain_to_policy, policy_to_plain, restore_callables
from .limits import DesignLimits
from .running_policy import RunningPolicy
from .stopping import as_rule
from .trials import Trials

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
            coordinates. A proposal that is too close is moved to the nearest allowed place. Among candidates any
            positive value means that none is used twice. The experiment stops when nothing is allowed.
        design_cost: Callable design (D,) -> cost, not negative.
        budget: Largest total cost. Among candidates only those that the rest of the budget can pay are proposed, and
            the experiment stops when there is none. In a continuous space it stops at the first proposal that costs
            more than the rest; `done` then makes that proposal. A design that was run anyway counts in full.
        stop_when: Rule asked after each trial, see `sbi_bed.inference.experiments.design.stopping`, or any callable
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
        self._limits = DesignLimits(simulator.design_space, min_distance, design_cost, budget)
        self.num_experiments = None if num_experiments is None else check_count(num_experiments, "num_experiments")
        self._batch_shape = () if self.num_experiments is None else (self.num_experiments,)
        self._rule = None if stop_when is None else as_rule(stop_when)
        self._check_options()
        self._trials = Trials(self._batch_shape, simulator.design_dim, simulator.outcome_dim)
        self._entries: list[dict[str, Any]] = []
        self._adoptions: list[dict[str, Any]] = []
        self._pending: Tensor | None = None
        self.stopped_because: str | None = None
        self.policy, self._running = policy, self._running_policy(policy)
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
        run = self._check_design(design) if self._pending is None or design is not None else self._pending
        outcome = self._check_outcome(outcome)
        cost = self._limits.cost(run)
        entry = {"event": "trial", "design": tensor_to_plain(run), "outcome": tensor_to_plain(outcome)}
        self._write(entry if cost is None else entry | {"cost": cost})
        self._add_trial(run, outcome, cost)
        self._ask_rule()
        if self.stopped_because is not None:
            self.close()  # there is nothing more to write

    @property
    def done(self) -> bool:
        """Whether no further trial is to be run; `stopped_because` says why."""
        if self._limits.any:
            self._prepare()  # whether a design is left shows when it is proposed
        return self.stopped_because is not None

    # ---- what is known

    @property
    def num_trials(self) -> int:
        """Number of trials recorded."""
        return len(self._trials)

    @property
    def designs(self) -> Tensor:
        """Designs as recorded, (n, D) or (B, n, D)."""
        return self._trials.designs

    @property
    def outcomes(self) -> Tensor:
        """Outcomes as recorded, (n, O) or (B, n, O)."""
        return self._trials.outcomes

    @property
    def history(self) -> Tensor:
        """All trials as the policy reads them, padded to (horizon, D + O + 1), or (B, horizon, D + O + 1)."""
        return self._trials_so_far(self.horizon)

    @property
    def spent(self) -> float:
        """Total cost of the designs run so far; 0 without `design_cost`."""
        return self._trials.spent

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
        by_name = isinstance(sample_with, str)  # a likelihood has the precision of the prior
        history = self._trials.history(self.simulator.dtype, self.horizon) if by_name else self.history
        if self._batch_shape:
            if experiment is None:
                raise ValueError(f"say which of the {self.num_experiments} experiments: posterior(experiment=0).")
            history = history[experiment]
        if num_trials is not None:
            history = history.clone()
            history[check_count(num_trials, "num_trials", 0) :] = 0
        if not by_name:
            return _given(sample_with, history)
        from ...posteriors.likelihood_posterior import likelihood_posterior

        return likelihood_posterior(self.simulator, history, sample_with=sample_with, **kwargs)

    def seed_for(self, purpose: str) -> int:
        """A seed that depends on the experiment's seed and a purpose, and on nothing else."""
        return seed_for(self.seed, purpose)

    # ---- for subclasses

    def _before_proposal(self) -> None:
        """Called before each new proposal; a subclass may call `_adopt_policy` here."""

    def _adopt_policy(self, policy: Any, **details: Any) -> None:
        """Go on with `policy`, and journal it; None keeps the present one and journals the details alone.

        Args:
            policy: New policy, of a kind that `load` can restore from the first one.
            **details: Plain data about it, kept in `_adoptions` as {"num_trials": ..., **details}.
        """
        running = None if policy is None else self._running_policy(policy)
        plain = None if policy is None else policy_to_plain(policy)
        self._write({"event": "policy", "num_trials": self.num_trials, "policy": plain, "details": details})
        self._adoptions.append({"num_trials": self.num_trials, **details})
        if running is not None:
            self.policy, self._running, self._pending = policy, running, None

    # ---- inside

    def _check_options(self) -> None:
        if self._rule is not None and self._rule.needs_likelihood and not self.simulator.has_likelihood:
            raise ValueError(f"the stopping rule '{self._rule}' needs a simulator with a log_likelihood.")
        if self.num_experiments is not None and (self._rule is not None or self._limits.design_cost is not None):
            raise ValueError("costs, a budget and a stopping rule are for single experiments, without num_experiments.")

    def _running_policy(self, policy: Any) -> RunningPolicy:
        return RunningPolicy(policy, self.simulator, self.horizon, self._batch_shape, self.seed)

    def _describe(self) -> dict[str, Any]:
        rule = None if self._rule is None else self._rule.plain or {"rule": None, "reason": str(self._rule)}
        common = {"seed": self.seed, "num_experiments": self.num_experiments, "min_distance": self._limits.min_distance}
        return {
            "kind": type(self).__name__,
            "horizon": self.horizon,
            "design_dim": self.simulator.design_dim,
            "outcome_dim": self.simulator.outcome_dim,
            "options": {**self._options, **common},
            "budget": self._limits.budget,
            "has_design_cost": self._limits.design_cost is not None,
            "stop_when": rule,
            "policy": policy_to_plain(self.policy),
        }

    @classmethod
    def _restore(
        cls, header: dict[str, Any], entries: list[dict[str, Any]], simulator: Any, policy: Any, options: dict[str, Any]
    ) -> Any:
        if header["kind"] != cls.__name__:
            raise ValueError(f"it holds a {header['kind']}; use {header['kind']}.load.")
        for name in ("design_dim", "outcome_dim"):
            if header[name] != getattr(simulator, name, header[name]):
                raise ValueError(f"it has {name} {header[name]}, the simulator {getattr(simulator, name)}.")
        saved = current_arguments(cls.__init__, header["options"])
        fixed = sorted({*saved, "horizon", "budget"} & options.keys())
        if fixed:
            raise ValueError(f"{', '.join(fixed)} cannot be changed while the experiment runs.")
        newest = [e["policy"] for e in entries if e["event"] == "policy" and e["policy"] is not None]
        restored = plain_to_policy((newest or [header["policy"]])[-1], simulator, policy)
        options = {**restore_callables(header, entries, options), **saved}
        experiment = cls(policy=restored, simulator=simulator, horizon=header["horizon"], **options)
        experiment._header = header
        for entry in entries:
            experiment._replay(entry)
        return experiment

    def _replay(self, entry: dict[str, Any]) -> None:
        """Take up one entry of a file."""
        self._entries.append(entry)
        if entry["event"] == "trial":
            if self.num_trials == self.horizon:
                raise ValueError(f"it holds more trials than its horizon, {self.horizon}.")
            design = self._check_design(plain_to_tensor(entry["design"]))
            self._add_trial(design, self._check_outcome(plain_to_tensor(entry["outcome"])), entry.get("cost"))
        elif entry["event"] == "policy":
            self._adoptions.append({"num_trials": entry["num_trials"], **entry["details"]})
        elif entry["event"] == "stop":
            self.stopped_because = entry["reason"]
        else:
            raise ValueError(f"it holds an event '{entry['event']}' that this version does not know.")

    def _resume(self) -> None:
        if self.num_trials:  # it may have ended between a trial and the question whether to stop
            self._ask_rule()
        if self.stopped_because is not None:
            self.close()

    def _prepare(self) -> None:
        """Propose the next design, unless there is one already or the experiment is done."""
        if self._pending is not None or self.stopped_because is not None:
            return
        self._before_proposal()
        state, device = self._running.state_after(self._trials), self._running.device
        with torch.no_grad(), seeded(self.seed_for(f"design {self.num_trials}"), device):
            proposed = self._limits.choose(
                self._running.policy, state, self.designs, self._trials_so_far(), self.spent, device
            )
        if isinstance(proposed, str):
            self._stop(proposed)
        else:
            self._pending = proposed

    def _check_design(self, design: Any) -> Tensor:
        space = self.simulator.design_space.given(self._trials_so_far())
        return self._checked(design, "design", self.simulator.design_dim, space.check)

    def _check_outcome(self, outcome: Any) -> Tensor:
        return self._checked(outcome, "outcome", self.simulator.outcome_dim, self.simulator.check_outcome)

    def _checked(self, value: Any, name: str, dim: int, check: Callable[[Any], Tensor]) -> Tensor:
        """A design or outcome as given, exact, of the right shape and inside its space."""
        value = as_finite_tensor(value, name, last_dim=dim)
        if value.shape != (*self._batch_shape, dim):
            raise ValueError(f"{name} must have shape {(*self._batch_shape, dim)}, got {tuple(value.shape)}.")
        value = value.detach().cpu().clone()
        check(value)
        if name == "outcome":  # a tiny positive one must not become 0 in the policy's precision
            check(value.to(self._running.dtype))
        return value

    def _add_trial(self, design: Tensor, outcome: Tensor, cost: float | None) -> None:
        self._trials.add(design, outcome, cost)
        self._pending = None
        if self.num_trials == self.horizon:
            self.stopped_because = "horizon"
        else:
            self._running.take_up_last(self._trials)

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
        self.stopped_because = reason
        with contextlib.suppress(OSError):  # `load` comes to the same conclusion again
            self._write({"event": "stop", "reason": reason})
        self.close()

    def _trials_so_far(self, length: int | None = None) -> Tensor:
        """The trials as the policy reads them, padded to `length` if given."""
        return self._trials.history(self._running.dtype, length)


def _given(posterior: Any, history: Tensor) -> Any:
    """A copy of a trained sbi posterior with `history` (horizon, D + O + 1) as its default x."""
    if not hasattr(posterior, "set_default_x"):
        raise TypeError(f"sample_with must be a name or a trained sbi posterior, got {posterior!r}.")
    from ...._compat import forget_leakage  # a live run that never asks needs no sbi

    posterior = copy.deepcopy(posterior)
    posterior.set_default_x(history.unsqueeze(0))
    forget_leakage(posterior)
    return posterior
