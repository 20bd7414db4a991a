"""An experiment that is what its events made of it: the part of a live experiment that is files and state.

Whatever happens is written first, as an entry of the journal, and then taken up by the state. What rewrites the past (an
`undo`, an invalid trial) or changes the course (policy, simulator, horizon) makes the state anew from all entries, as `load`
does; if they do not fit together nothing is written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ....simulators.base import DesignSimulator
from ....utils.checks import as_finite_tensor, check_count
from ....utils.renamed import current_arguments
from ....utils.seeding import seed_for
from ...posteriors.trained_posterior import posterior_given
from ..journal import plain_to_tensor
from ..saved import SavedExperiment, plain_to_policy, policy_to_plain
from .events import ExperimentState, SetAside, standing
from .limits import DesignLimits
from .running_policy import RunningPolicy
from .stopping import StoppingRule, restore_rule
from .trials import Trials

__all__ = ["FROM_FILE", "RecordedExperiment"]

FROM_FILE: Any = object()  # given as policy by `load`, which brings the file's


class RecordedExperiment(SavedExperiment):
    """What `AdaptiveExperiment` knows and keeps; its constructor sets the attributes without a leading underscore."""

    _options: dict[str, Any] = {}  # noqa: RUF012  a subclass sets its own arguments, plain data, before super().__init__

    policy: Any
    simulator: DesignSimulator
    seed: int
    num_experiments: int | None
    _batch_shape: tuple[int, ...]
    _limits: DesignLimits
    _rule: StoppingRule | None
    _state: ExperimentState
    _running: RunningPolicy
    _pending: Tensor | None
    _over = False  # whether the journal was closed because there is nothing more to write

    # ---- what is known

    @property
    def horizon(self) -> int:
        """Largest number T of trials."""
        return self._state.horizon

    @property
    def stopped_because(self) -> str | None:
        """Why the experiment is done, or None."""
        return self._state.stopped_because

    @property
    def num_trials(self) -> int:
        """Number of trials recorded; those that are marked invalid do not count."""
        return len(self._state.trials)

    @property
    def designs(self) -> Tensor:
        """Designs as recorded, (n, D) or (B, n, D)."""
        return self._state.trials.designs

    @property
    def outcomes(self) -> Tensor:
        """Outcomes as recorded, (n, O) or (B, n, O)."""
        return self._state.trials.outcomes

    @property
    def history(self) -> Tensor:
        """All trials as the policy reads them, padded to (horizon, D + O + 1), or (B, horizon, D + O + 1)."""
        return self._state.trials.history(self._running.dtype, self.horizon)

    @property
    def spent(self) -> float:
        """Total cost of the designs run so far, invalid trials included; 0 without `design_cost`."""
        return self._state.spent

    @property
    def handles(self) -> list[int]:
        """Handles of the trials, in the order of `designs`."""
        return list(self._state.handles)

    @property
    def in_flight(self) -> dict[int, Tensor]:
        """Handle -> design (D,), or (B, D), of those that `next_designs` gave and whose outcomes are awaited."""
        return {handle: design.clone() for handle, design in self._state.in_flight.items()}

    @property
    def skipped(self) -> list[SetAside]:
        """Designs that were not run, with `handle`, `design` and `reason`."""
        return list(self._state.skipped)

    @property
    def invalid(self) -> list[SetAside]:
        """Trials that were marked invalid, with `handle`, `design`, `outcome` and `reason`."""
        return list(self._state.invalid)

    @property
    def changes(self) -> list[dict[str, Any]]:
        """What was changed and after how many trials: policy, simulator, horizon, with the reason or other details."""
        return [dict(change) for change in self._state.changes]

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
        history = self._state.trials.history(self.simulator.dtype if by_name else self._running.dtype)
        if self._batch_shape:
            if experiment is None:
                raise ValueError(f"say which of the {self.num_experiments} experiments: posterior(experiment=0).")
            history = history[experiment]
        if num_trials is not None:
            history = history[: check_count(num_trials, "num_trials", 0)]
        if not by_name:
            return posterior_given(sample_with, history, self.horizon)
        from ...posteriors.likelihood_posterior import likelihood_posterior

        history = torch.nn.functional.pad(history, (0, 0, 0, self.horizon - len(history)))
        return likelihood_posterior(self.simulator, history, sample_with=sample_with, **kwargs)

    def seed_for(self, purpose: str) -> int:
        """A seed that depends on the experiment's seed and a purpose, and on nothing else."""
        return seed_for(self.seed, purpose)

    def close(self) -> None:
        """Close the journal, so that it can be loaded again. What is recorded later raises a `ValueError`."""
        self._over = False
        super().close()

    # ---- what happens

    def _happen(self, entry: dict[str, Any]) -> None:
        """Write and take up an event that leaves what was before as it is."""
        self._put(entry)
        self._state.take_up(entry)
        self._pending = None

    def _change(self, entry: dict[str, Any], policy: Any = None, simulator: DesignSimulator | None = None) -> None:
        """Write an event that changes past or course, and become what all entries then make; ask the rule anew."""
        simulator = self.simulator if simulator is None else simulator
        become = self._replayed([*self._entries, entry], self.policy if policy is None else policy, simulator)
        self._put(entry)
        become()
        self._settle()

    def _put(self, entry: dict[str, Any]) -> None:
        self._need_callables()
        if self._over and self._journal is not None:
            self._journal.reopen()
            self._over = False
        self._write(entry)

    def _settle(self) -> None:
        """Ask the stopping rule; close the journal if there is nothing more to write."""
        if self._rule is not None and self.num_trials and self.stopped_because is None:
            try:
                holds = bool(self._rule(self))  # pyright: ignore[reportArgumentType]
            except Exception as err:
                raise RuntimeError(f"it is recorded, but the stopping rule '{self._rule}' failed: {err}") from err
            if holds:
                self._stop(str(self._rule))
        if self.stopped_because is not None and not self._state.in_flight and not self._over:
            self.close()
            self._over = True

    def _stop(self, reason: str) -> None:
        self._state.stop(reason)
        with contextlib.suppress(OSError):  # `load` comes to the same conclusion again
            self._put({"event": "stop", "reason": reason})

    def _adopt_policy(self, policy: Any, **details: Any) -> None:
        """Go on with `policy`, and journal it; None keeps the present one and journals the details alone.

        Args:
            policy: New policy, of a kind that `load` can restore from the first one.
            **details: Plain data about it, kept in `changes`.
        """
        plain = None if policy is None else policy_to_plain(policy)
        self._change({"event": "policy", "num_trials": self.num_trials, "policy": plain, "details": details}, policy)

    # ---- files

    def _describe(self) -> dict[str, Any]:
        rule = None if self._rule is None else self._rule.plain or {"rule": None, "reason": str(self._rule)}
        limits = self._limits
        common = {"seed": self.seed, "num_experiments": self.num_experiments}
        common |= {"min_distance": limits.min_distance, "no_repeat_within": limits.no_repeat_within}
        return {
            "kind": type(self).__name__,
            "horizon": self.horizon,
            "design_dim": self.simulator.design_dim,
            "outcome_dim": self.simulator.outcome_dim,
            "options": {**self._options, **common},
            "budget": limits.budget,
            "has_design_cost": limits.design_cost is not None,
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
        fixed = sorted({*saved, "horizon", "budget", "no_repeat_within"} & options.keys())
        if fixed:
            raise ValueError(f"{', '.join(fixed)} cannot be changed while the experiment runs.")
        options = {**_callables(header, options), **saved}
        experiment: Any = cls(policy=FROM_FILE, simulator=simulator, horizon=header["horizon"], **options)  # pyright: ignore
        experiment._header, experiment._entries = header, list(entries)
        experiment._replayed(entries, policy, simulator)()
        if experiment.stopped_because is None:
            experiment._need_callables()
        return experiment

    def _need_callables(self) -> None:
        """Refuse to go on without the cost and the rule that the experiment was begun with."""
        if self._header["has_design_cost"] and self._limits.design_cost is None:
            raise ValueError("give design_cost= again, its cost of a design, when it is loaded.")
        if self._header["stop_when"] is not None and self._rule is None:
            reason = self._header["stop_when"]["reason"]
            raise ValueError(f"give stop_when= again, its stopping rule '{reason}', when it is loaded.")

    def _replayed(self, entries: list[dict[str, Any]], policy: Any, simulator: DesignSimulator) -> Callable[[], None]:
        """Work out what `entries` make, and return what makes the experiment so.

        Args:
            entries: All entries.
            policy: A policy that can hold the weights of the newest one among the entries, or is it.
            simulator: The experiment that goes on.
        """
        kept = standing(entries)
        plain, horizon = self._header["policy"], self._header["horizon"]
        for entry in kept:
            plain = entry.get("policy") or plain
            horizon = entry.get("horizon", horizon)
        policy = plain_to_policy(plain, simulator, policy)
        running = self._running_policy(policy, simulator, horizon)
        state = self._empty_state(self._header["horizon"])
        not_looked_at = {entry["handle"] for entry in kept if entry["event"] == "invalid"}
        for entry in kept:
            if entry["event"] == "trial" and entry["handle"] not in not_looked_at:
                self._check_design(plain_to_tensor(entry["design"]), simulator, running, state)
                self._check_outcome(plain_to_tensor(entry["outcome"]), simulator, running)
            state.take_up(entry)
        for design in state.in_flight.values():
            self._check_design(design, simulator, running, state)
        state.check_room()

        def become() -> None:
            self._state, self._running, self._pending = state, running, None
            self.policy, self.simulator, self._limits.space = policy, simulator, simulator.design_space

        return become

    def _empty_state(self, horizon: int) -> ExperimentState:
        return ExperimentState(
            Trials(self._batch_shape, self.simulator.design_dim, self.simulator.outcome_dim), horizon
        )

    def _resume(self) -> None:
        self._settle()  # it may have ended between a trial and the question whether to stop

    def _running_policy(self, policy: Any, simulator: DesignSimulator, horizon: int) -> RunningPolicy:
        """The policy as this experiment runs it; without its state, which is made from the trials when it is needed."""
        if policy is getattr(self, "policy", None) and (simulator, horizon) == (self.simulator, self.horizon):
            return self._running.restarted()  # no second warning
        return RunningPolicy(policy, simulator, horizon, self._batch_shape, self.seed)

    def _check_design(
        self, design: Any, simulator: DesignSimulator, running: RunningPolicy, state: ExperimentState
    ) -> Tensor:
        space = simulator.design_space.given(state.trials.history(running.dtype))
        return self._checked(design, "design", simulator.design_dim, space.check)

    def _check_outcome(self, outcome: Any, simulator: DesignSimulator, running: RunningPolicy) -> Tensor:
        outcome = self._checked(outcome, "outcome", simulator.outcome_dim, simulator.check_outcome)
        simulator.check_outcome(
            outcome.to(running.dtype)
        )  # a tiny positive one must not become 0 in the policy's precision
        return outcome

    def _checked(self, value: Any, name: str, dim: int, check: Callable[[Any], Tensor]) -> Tensor:
        """A design or outcome as given, exact, of the right shape and inside its space."""
        value = as_finite_tensor(value, name, last_dim=dim)
        if value.shape != (*self._batch_shape, dim):
            raise ValueError(f"{name} must have shape {(*self._batch_shape, dim)}, got {tuple(value.shape)}.")
        value = value.detach().cpu().clone()
        check(value)
        return value


def _callables(header: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Rule and cost of a file, as far as it can hold them, joined with those that `load` was given."""
    options = dict(options)
    rule = header["stop_when"]
    if options.get("stop_when") is None and rule is not None and rule["rule"] is not None:
        options["stop_when"] = restore_rule(rule)
    if options.get("design_cost") is not None:
        if not header["has_design_cost"]:
            raise ValueError("it was run without design_cost.")
        options["budget"] = header["budget"]
    return options
