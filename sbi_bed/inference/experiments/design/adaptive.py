"""A live experiment: ask for a design, record what happened, look at the posterior.

With a journal, what was recorded is on the disk before `record` returns, and `load` continues after a crash with the
very design that would have come next: the file holds the policy, the seed and every trial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....simulators.base import DesignSimulator
from ....utils.checks import check_count
from ....utils.seeding import seeded
from ..journal import Journal, tensor_to_plain
from ..saved import policy_to_plain
from .imagined import imagined_outcomes
from .limits import DesignLimits
from .recorded import FROM_FILE, RecordedExperiment
from .stopping import as_rule

__all__ = ["AdaptiveExperiment"]


class AdaptiveExperiment(RecordedExperiment):
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
        no_repeat_within: A design keeps that distance from those of the last `no_repeat_within` trials alone, those in
            flight included; from all if None. Among candidates it then differs from them even if `min_distance` is 0.
        design_cost: Callable design (D,) -> cost, not negative.
        budget: Largest total cost. Among candidates only those that the rest of the budget can pay are proposed, and
            the experiment stops when there is none. In a continuous space it stops at the first proposal that costs
            more than the rest; `done` then makes that proposal. A design that was run anyway counts in full.
        stop_when: Rule asked after each trial, see `sbi_bed.inference.experiments.design.stopping`, or any callable
            experiment -> bool.
        num_experiments: Number B of independent deployments run side by side, for benchmarks; every tensor then has a
            leading dimension B. Budget and stopping rule are for single experiments.

    Attributes:
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

        Two designs at a time, answered in any order; one is lost, one answer was wrong, and there is time for one more:

        >>> experiment = AdaptiveExperiment(DeepSetsPolicy(simulator), simulator, horizon=3, seed=0)
        >>> designs = experiment.next_designs(2)  # handle -> design
        >>> experiment.record([1.2], handle=1)
        >>> experiment.skip(0, reason="lost in the mail")
        >>> experiment.mark_invalid(1, reason="the lamp was off")
        >>> experiment.change_horizon(4)
        >>> experiment.num_trials, experiment.history.shape, [trial.reason for trial in experiment.invalid]
        (0, torch.Size([4, 4]), ['the lamp was off'])
    """

    def __init__(
        self,
        policy: Any,
        simulator: DesignSimulator,
        horizon: int,
        journal: str | Path | None = None,
        *,
        seed: int | None = None,
        min_distance: float = 0.0,
        no_repeat_within: int | None = None,
        design_cost: Callable[[Tensor], Any] | None = None,
        budget: float | None = None,
        stop_when: Any = None,
        num_experiments: int | None = None,
    ):
        self._check_simulator(simulator)
        self.simulator = simulator
        horizon = check_count(horizon, "horizon")
        self.seed = int(torch.randint(2**62, ())) if seed is None else check_count(seed, "seed", 0)
        self._limits = DesignLimits(simulator.design_space, min_distance, design_cost, budget, no_repeat_within)
        self.num_experiments = None if num_experiments is None else check_count(num_experiments, "num_experiments")
        self._batch_shape = () if self.num_experiments is None else (self.num_experiments,)
        self._rule = None if stop_when is None else as_rule(stop_when)
        self._check_options(simulator)
        self._state = self._empty_state(horizon)
        self._entries, self._pending, self._journal = [], None, None
        if policy is not FROM_FILE:
            self._running = self._running_policy(policy, simulator, horizon)
            self.policy = policy
            self._header = self._describe()
            self._journal = None if journal is None else Journal.create(journal, self._header)

    # ---- ask and tell

    def next_design(self) -> Tensor:
        """The next design (D,), or (B, D) for a batch; the same one until something is recorded or changed.

        Raises:
            ValueError: If the experiment is done, every trial that remains is in flight, or the policy proposes something
                outside the design space.
        """
        problem = self._prepare()
        if self._pending is None:
            raise ValueError(problem or f"the experiment is done ({self.stopped_because}); there is no next design.")
        return self._pending.clone()

    def next_designs(self, num: int) -> dict[int, Tensor]:
        """The next `num` designs, to be run at the same time; with a journal they are on the disk when this returns.

        They are then `in_flight`, and their outcomes may be recorded in any order. Each is proposed as if those in flight
        had an outcome already: a central one of those that the trials so far predict (`imagined.py`). A design may come
        twice if the policy wants that, unless `min_distance` or `no_repeat_within` forbid it.

        Returns:
            Handle -> design (D,), or (B, D). Fewer, even none, where horizon, budget or distances leave fewer at present.

        Raises:
            ValueError: If the experiment is done, trials depend on those before (through the design space, or a hidden
                state), or the policy proposes something outside the design space.
            OSError: If the journal cannot be written. Nothing is recorded then, and the call may be repeated.
        """
        if self.simulator.design_space.depends_on_history or self.simulator.has_state:
            raise ValueError("designs in flight need trials that do not depend on those before: use next_design().")
        self._prepare()
        if self.stopped_because is not None:
            raise ValueError(f"the experiment is done ({self.stopped_because}); there is no next design.")
        first, waiting, new = self._state.next_handle, self._state.in_flight, []
        for _ in range(min(check_count(num, "num"), self._state.room)):
            proposed = (
                self._pending if self._pending is not None and not new else self._propose([*waiting.values(), *new])
            )
            if isinstance(proposed, str):
                break
            new.append(proposed)
        if new:
            handles = list(range(first, first + len(new)))
            self._happen({"event": "ask", "handles": handles, "designs": [tensor_to_plain(design) for design in new]})
        return {first + i: design.clone() for i, design in enumerate(new)}

    def record(self, outcome: Any, design: Any = None, *, handle: int | None = None) -> None:
        """Record what happened; with a journal it is on the disk when this returns.

        Args:
            outcome: Outcome (O,), or (B, O) for a batch.
            design: The design (D,) that was really run, where it is not the one that was proposed.
            handle: Which of the designs in flight it was; without, it is the one of `next_design`.

        Raises:
            ValueError: If outcome or design have the wrong shape, hold NaN or infinity or lie outside their space, no
                design was asked for, the handle is not in flight, or the experiment is done. What is in flight can be
                recorded even so.
            OSError: If the journal cannot be written. Then nothing is recorded, and the call may be repeated.
            RuntimeError: If the stopping rule fails. The trial is then recorded.
        """
        handle, planned = self._asked_for(handle, "record", given=design is not None)
        run = planned if design is None else self._check_design(design, self.simulator, self._running, self._state)
        outcome = self._check_outcome(outcome, self.simulator, self._running)
        cost = self._limits.cost(run)
        entry = {
            "event": "trial",
            "handle": handle,
            "design": tensor_to_plain(run),
            "outcome": tensor_to_plain(outcome),
        }
        self._happen(entry if cost is None else entry | {"cost": cost})
        if self.num_trials < self.horizon:
            self._running.take_up_last(self._state.trials)
        self._settle()

    @property
    def done(self) -> bool:
        """Whether no further trial is to be run; `stopped_because` says why. What is in flight may still be recorded."""
        if self._limits.any or self._state.avoided:
            self._prepare()  # whether a design is left shows when it is proposed
        return self.stopped_because is not None

    # ---- what happens in a laboratory

    def skip(self, handle: int | None = None, *, for_good: bool = False, reason: str = "") -> None:
        """Do not run a proposed design: the next proposal is another one. The skipped trial costs none of the horizon.

        Policies that draw draw anew, those that choose among candidates take the best of the others, and any other proposal
        is moved away, in a continuous space by 0.1 of its standardised units at least.

        Args:
            handle: Which of the designs in flight; without, the one that `next_design` gave.
            for_good: Whether it must never be proposed again; else it may be after the next trial.
            reason: Why, for `skipped`.

        Raises:
            ValueError: If no design was asked for, or the handle is not in flight.
            OSError: If the journal cannot be written. Nothing is recorded then, and the call may be repeated.
        """
        handle, design = self._asked_for(handle, "skip")
        entry = {"event": "skip", "handle": handle, "design": tensor_to_plain(design)}
        self._happen({**entry, "for_good": bool(for_good), "reason": str(reason)})
        self._settle()

    def mark_invalid(self, handle: int | None = None, *, reason: str = "") -> None:
        """Leave a trial out of history, posterior and policy; it stays in the file, in `invalid` and in what was spent.

        It costs none of the horizon: a finished experiment goes on. What was found from it, such as a refined policy or a
        stop, is found anew.

        Args:
            handle: Which trial, see `handles`; the last one recorded if None.
            reason: Why, for `invalid`.

        Raises:
            ValueError: If there is no such trial.
            OSError: If the journal cannot be written. Nothing is recorded then, and the call may be repeated.
        """
        if handle is None and not self._state.handles:
            raise ValueError("there is no trial to mark as invalid.")
        handle = self._state.handles[-1] if handle is None else check_count(handle, "handle", 0)
        self._change({"event": "invalid", "handle": handle, "reason": str(reason)})

    def undo(self) -> None:
        """Take back the last `record`, `skip` or `mark_invalid`, as if it had not been called; as often as there is one.

        The design then comes from `next_design` again, or is in flight again. What was found from the trial, such as a
        refined policy or a stop, is taken back, too. Changes of policy, simulator or horizon, and later `next_designs`,
        stay. The journal keeps what was taken back.

        Raises:
            ValueError: If there is nothing to undo, or the trial would not fit into a horizon that was shortened since.
            OSError: If the journal cannot be written. Nothing is recorded then, and the call may be repeated.

        Example:
            >>> from sbi_bed.policies import RandomPolicy
            >>> from sbi_bed.simulators import LocationFinding
            >>> simulator = LocationFinding()
            >>> experiment = AdaptiveExperiment(RandomPolicy(simulator), simulator, horizon=1)
            >>> design = experiment.next_design()
            >>> experiment.record([81.0])  # a slip: 8.1 was meant
            >>> experiment.undo()
            >>> experiment.done, experiment.next_design().equal(design)
            (False, True)
            >>> experiment.record([8.1])
        """
        self._change({"event": "undo"})

    def change_horizon(self, horizon: int, *, reason: str = "") -> None:
        """Lengthen or shorten the experiment; warns if the policy was trained for fewer trials.

        Args:
            horizon: New largest number T of trials, not below those recorded and in flight.
            reason: Why, for `changes`.

        Raises:
            ValueError: If it is below that, or the policy was built for fewer trials.
            OSError: If the journal cannot be written. Nothing is recorded then, and the call may be repeated.
        """
        self._change({"event": "horizon", "horizon": check_count(horizon, "horizon"), "reason": str(reason)})

    def replace(self, policy: Any = None, simulator: DesignSimulator | None = None, *, reason: str) -> None:
        """Go on with another policy, another simulator, or both, for example after data that contradict the model.

        The trials stay, and so do designs in flight. The next design comes from the new policy and `posterior` from the new
        simulator, each given all trials. `load` wants the new simulator from then on; the file holds the new policy.

        Args:
            policy: New policy.
            simulator: New simulator, with designs and outcomes of the same sizes; all trials, and what
                is in flight, must lie in its spaces.
            reason: Why, for `changes`.

        Raises:
            TypeError: If policy or simulator are not what they should be.
            ValueError: If neither is given, they do not fit the trials or each other, or the present policy plans with the
                present simulator, so that it must be replaced, too.
            OSError: If the journal cannot be written. Nothing is recorded then, and the call may be repeated.
        """
        if policy is None and simulator is None:
            raise ValueError("give policy=, simulator=, or both.")
        if simulator is not None:
            self._check_simulator(simulator)
            self._check_options(simulator)
            for name in ("design_dim", "outcome_dim"):
                if getattr(simulator, name) != getattr(self.simulator, name):
                    mine, new = getattr(self.simulator, name), getattr(simulator, name)
                    raise ValueError(f"the experiment has {name} {mine}, the new simulator {new}.")
            if policy is None and getattr(self.policy, "simulator", None) is not None:
                raise ValueError(
                    "the policy plans with the present simulator: give policy= too, one for the new simulator."
                )
        entry = {"event": "replace", "reason": str(reason)}
        entry["policy"] = None if policy is None else policy_to_plain(policy)  # pyright: ignore[reportArgumentType]
        entry["simulator"] = None if simulator is None else type(simulator).__name__  # pyright: ignore[reportArgumentType]
        self._change(entry, policy, simulator)

    # ---- inside

    def _before_proposal(self) -> None:
        """Called before each new proposal; a subclass may call `_adopt_policy` here."""

    def _check_simulator(self, simulator: Any) -> None:
        if not isinstance(simulator, DesignSimulator):
            raise TypeError(f"simulator must be a DesignSimulator, got {simulator!r}.")

    def _check_options(self, simulator: DesignSimulator) -> None:
        if self._rule is not None and self._rule.needs_likelihood and not simulator.has_likelihood:
            raise ValueError(f"the stopping rule '{self._rule}' needs a simulator with a log_likelihood.")
        if self.num_experiments is not None and (self._rule is not None or self._limits.design_cost is not None):
            raise ValueError("costs, a budget and a stopping rule are for single experiments, without num_experiments.")

    def _asked_for(self, handle: int | None, verb: str, given: bool = False) -> tuple[int, Any]:
        """Handle and design of what is to be recorded or skipped; the design may be None if the one run is given."""
        waiting = self._state.in_flight
        if handle is not None:
            handle = check_count(handle, "handle", 0)
            if handle not in waiting:
                raise ValueError(f"no design with handle {handle} is in flight, only {list(waiting)}.")
            return handle, waiting[handle]
        if self.stopped_because is not None:
            raise ValueError(f"the experiment is done ({self.stopped_because}); there is nothing to {verb}.")
        if self._state.room < 1:
            raise ValueError(f"{self._all_in_flight()}: give handle=, or lengthen the horizon.")
        if self._pending is None and not given:
            flying = f", or handle=, one of {list(waiting)} in flight" if waiting else ""
            run = ", or give design=, the design that was run" if verb == "record" else ""
            raise ValueError(f"nothing to {verb}: call next_design() first{run}{flying}.")
        return self._state.next_handle, self._pending

    def _all_in_flight(self) -> str:
        return f"every trial that remains is in flight, with handles {list(self._state.in_flight)}"

    def _prepare(self) -> str | None:
        """Propose the next design, unless there is one or the experiment is done; returns why it cannot at present."""
        if self._pending is not None or self.stopped_because is not None:
            return None
        if self._state.room < 1:
            return f"{self._all_in_flight()}: record their outcomes."
        self._before_proposal()
        waiting = self._state.in_flight
        proposed = self._propose(list(waiting.values()))
        if not isinstance(proposed, str):
            self._pending = proposed
        elif waiting:
            return f"nothing can be proposed ({proposed}) until the outcomes of handles {list(waiting)} are recorded."
        else:
            self._stop(proposed)
            self._settle()
        return None

    def _propose(self, waiting: Sequence[Tensor]) -> Tensor | str:
        """A design to follow the trials so far and those that wait for their outcomes, or why there is none."""
        state, running, limits = self._state, self._running, self._limits
        none = state.trials.designs[..., :0, :]
        in_flight, skipped = (torch.stack([*x], dim=-2) if x else none for x in (waiting, state.avoided))
        imagined = none
        if waiting:
            seed = self.seed_for(f"imagined after {self.num_trials}")
            imagined = imagined_outcomes(self.simulator, state.trials, in_flight, seed)
        known = running.state_after(state.trials, zip(in_flight.unbind(-2), imagined.unbind(-2), strict=True))
        earlier = torch.cat([state.trials.designs, in_flight], dim=-2)
        history, spent = state.trials.history(running.dtype), state.spent
        if limits.design_cost is not None:
            spent += sum(limits.cost(design) or 0.0 for design in waiting)
        number = state.next_handle + len(waiting) - len(state.in_flight)
        with torch.no_grad(), seeded(self.seed_for(f"design {number}"), running.device):
            return limits.choose(running.policy, known, earlier, skipped, history, spent, running.device)
