"""A live treatment experiment: it assigns units to arms one by one, and estimates the effect at any time.

Each unit gets a propensity and a predicted outcome in both arms, from outcomes recorded before. Both are fixed, and with a
journal on the disk, before the arm is drawn. The estimate is A2IPW with exactly these
numbers (`a2ipw.py`), so no choice of policy or of predictions can bias it. Outcomes may come late, in any order, or never,
and more so in one arm than in the other. Within an arm, loss and delay must not depend on outcomes or covariates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....simulators.treatment.arms import draw_arms
from ....utils.checks import as_finite_tensor, check_count
from ....utils.seeding import seed_for
from ....utils.warn_user import warn_user
from ..journal import Journal
from ..saved import SavedExperiment, plain_to_policy, policy_to_plain
from .a2ipw import AteEstimate
from .betting import check_outcome_space, check_outcomes, outcome_range
from .estimate_warnings import estimate_warnings
from .frames import is_frame, read_frame, with_columns
from .log import TreatmentLog
from .past_learner import PastLearner, executed_propensity
from .trial_report import TrialReport, trial_report
from .units import UnitRegister

__all__ = ["TreatmentExperiment"]

_LARGEST = 1e60  # of an outcome: its fourth power must fit into float64


class TreatmentExperiment(SavedExperiment):
    """Assigns units to arms under a policy, and estimates the average effect of each treatment against arm 0, the control.

    Args:
        policy: `TreatmentPolicy`, or any callable (history (n, d + 3), covariates (d,)) -> propensity, where the history
            holds the units whose outcomes are known. With K > 2 arms a propensity is the probability of each arm, (K,).
            It is not copied: do not train it while the experiment runs.
        covariate_dim: Number d of covariates; needed for a callable only.
        nuisance: What predicts outcomes: another `TreatmentPolicy`, or a regressor with fit(X, y) and predict(X), which
            the experiment fits to past units of each arm. If None the policy, or, if it cannot, the arms' means so far.
        refit_every: Refit a regressor whenever an arm's outcomes reach a multiple of this number.
        clip: Smallest executed probability of any arm; if None the policy's own, or 0.05 if it has none.
        tightest_at: Number of units at which the confidence sequence is tightest, for real outcomes; it is fixed here,
            before any outcome.
        outcome_space: "real"; "binary" for outcomes 0 and 1; or (low, high) for outcomes between two limits. Binary and
            bounded outcomes get intervals that are valid for any number of units and events (`betting.py`); those of real
            outcomes are asymptotic (`few_events.py`).
        seed: Seed of the assignments; drawn from torch's global generator if None.
        journal: New file that every assignment and outcome is written to before it is answered. None keeps them in memory.
        num_arms: Number K of arms; needed for a callable only, and 2 if None.
        open_arms: Arms that take units from the start, arm 0 among them; all if None. See `open_arm`.
        missing_covariates: What a covariate is that is missing (NaN, None): "mean", the mean of the units so far; or d
            numbers. None refuses it. The log has the covariate as it was filled, and says of which units.
        covariate_names: Names of the covariates in frames; if None all columns of the first frame but the ids.

    Attributes:
        open_arms: Arms that take units, in order.
        covariate_names: Names of the covariates, if any.
        seed: The seed.
        num_arms: Number K of arms.
        outcome_space: "real", "binary" or (low, high).

    Raises:
        TypeError: If the policy is not callable, or the nuisance neither policy nor regressor.
        ValueError: If the nuisance does not fit the policy, an option is out of range, or the journal exists already.

    Example:
        >>> from sbi_bed.policies import NonContextualNeyman
        >>> experiment = TreatmentExperiment(NonContextualNeyman(covariate_dim=1), seed=0)
        >>> for age in range(20, 60):
        ...     arm, propensity = experiment.assign(age)
        ...     experiment.update(0.1 * age + 2.0 * float(arm))
        >>> estimate = experiment.estimate()
        >>> estimate.num_units, abs(estimate.ate - 2.0) < 3 * estimate.stderr
        (39, True)

        Three arms, of which arm 0 is the control:

        >>> trial = TreatmentExperiment(NonContextualNeyman(covariate_dim=0, num_arms=3), seed=0)
        >>> for number in range(90):
        ...     arm, propensities = trial.assign()
        ...     trial.update(float(arm) + (number % 7 - 3.0))
        >>> estimate = trial.estimate()
        >>> bool(((estimate.ate - torch.tensor([1.0, 2.0])).abs() < 3 * estimate.stderr).all())
        True
    """

    def __init__(
        self,
        policy: Any,
        covariate_dim: int | None = None,
        *,
        nuisance: Any = None,
        refit_every: int = 1,
        clip: float | None = None,
        tightest_at: int = 200,
        outcome_space: Any = "real",
        seed: int | None = None,
        journal: str | Path | None = None,
        num_arms: int | None = None,
        open_arms: Sequence[int] | None = None,
        missing_covariates: Any = None,
        covariate_names: Sequence[str] | None = None,
    ):
        if not callable(policy):
            raise TypeError(f"policy must be a TreatmentPolicy or a callable, got {policy!r}.")
        known = getattr(policy, "covariate_dim", covariate_dim)
        if known is None:
            raise ValueError("covariate_dim= is needed for a policy that does not say how many covariates it reads.")
        self.covariate_dim = check_count(known, "covariate_dim", 0)
        if covariate_dim not in (None, self.covariate_dim):
            raise ValueError(f"covariate_dim is {covariate_dim}, but the policy is for {self.covariate_dim}.")
        self.num_arms = check_count(getattr(policy, "num_arms", num_arms or 2), "num_arms", 2)
        if num_arms not in (None, self.num_arms):
            raise ValueError(f"num_arms is {num_arms}, but the policy is for {self.num_arms}.")
        limit: float = getattr(policy, "clip", 0.05) if clip is None else clip
        if not 0 < limit < 1 / self.num_arms:
            raise ValueError(f"clip must be strictly between 0 and 1/{self.num_arms}, got {limit}.")
        self.clip, self.tightest_at = float(limit), check_count(tightest_at, "tightest_at")
        self.outcome_space = check_outcome_space(outcome_space)
        self.seed = int(torch.randint(2**62, ())) if seed is None else check_count(seed, "seed", 0)
        self.refit_every = check_count(refit_every, "refit_every")
        self.policy, self._has_nuisance = policy, nuisance is not None
        self._learner = PastLearner(
            policy, nuisance, self.covariate_dim, self.num_arms, self.clip, self.refit_every, self.seed
        )
        self.open_arms = sorted(range(self.num_arms) if open_arms is None else open_arms)
        self._first_open, every = self.open_arms, set(range(self.num_arms))
        if not {0} < set(self.open_arms) <= every or len(set(self.open_arms)) < len(self.open_arms):
            raise ValueError(f"open_arms must be arm 0 and other arms below {self.num_arms}, got {open_arms}.")
        self.covariate_names = None if covariate_names is None else list(covariate_names)
        if self.covariate_names is not None and len(self.covariate_names) != self.covariate_dim:
            raise ValueError(f"covariate_names must be {self.covariate_dim} names, got {self.covariate_names}.")
        fill = missing_covariates
        if fill is not None and not isinstance(fill, str):
            fill = as_finite_tensor(fill, "missing_covariates", self.covariate_dim, dtype=torch.float64)
        elif fill not in (None, "mean"):
            raise ValueError(f"missing_covariates must be 'mean' or {self.covariate_dim} numbers, got {fill!r}.")
        self._register = UnitRegister(self.covariate_dim, self.num_arms, fill)
        self._entries: list[dict[str, Any]] = []
        self._warned: set[str] = set()
        self._header = self._describe()
        self._journal = None if journal is None else Journal.create(journal, self._header)

    # ---- ask and tell

    def assign(self, covariates: Any = (), unit: Any = None) -> Any:
        """Assign the next unit, or several at once, none of which then sees another's outcome.

        Args:
            covariates: Covariates (d,) of a unit, or (n, d) of several, known before treatment; or a frame of pandas or
                polars with a row for each unit.
            unit: Id of the unit, a whole number or a string, or n ids; by default they are numbered from 0 on. With a frame
                also the name of the column that holds the ids.

        Returns:
            Arm, and probability of arm 1 that it was drawn with: shape () for one unit, (n,) for several. With K > 2 arms
            the probability of each, (K,) or (n, K). For a frame the same frame with columns unit, arm and propensity (or
            p0, p1, … with K > 2 arms) added.

        Raises:
            TypeError: If covariates are not numbers.
            ValueError: If covariates have the wrong shape or hold NaN or infinity, a unit is known already, or the policy
                proposes no probability strictly between 0 and 1. Nothing is recorded then.
            OSError: If the journal cannot be written. Nothing is recorded then, and the call may be repeated.
        """
        frame, names = (covariates, None) if is_frame(covariates) else (None, None)
        if frame is not None:
            covariates, unit, names = read_frame(frame, unit, self.covariate_names)
        units, rows, gaps = self._register.new_units(covariates, unit)
        single = rows.ndim == 1
        rows = rows.reshape(len(units), self.covariate_dim)
        self._learner.learn(self._register.arrivals)
        propensity, predicted = self._propose(rows)
        first = len(self._register)
        chance = torch.stack([self._chance(first + i) for i in range(len(rows))])
        arm = draw_arms(chance, propensity, self.num_arms)
        columns = {"covariates": rows, "arm": arm, "propensity": propensity, "predicted": predicted}
        entry = {"event": "assign", "units": units, **{name: values.tolist() for name, values in columns.items()}}
        if gaps.any():
            entry["missing"] = gaps.reshape(rows.shape).tolist()
        if names != self.covariate_names and names is not None:
            entry["names"] = names
        self._write(entry)
        self.covariate_names = names or self.covariate_names
        self._register.add(units, *columns.values(), gaps=gaps)
        if frame is not None:
            by_arm = (
                {f"p{a}": column.tolist() for a, column in enumerate(propensity.unbind(-1))}
                if self.num_arms > 2
                else {}
            )
            given = by_arm or {"propensity": propensity.tolist()}
            return with_columns(frame, {"unit": units, "arm": arm.tolist(), **given})
        return (arm[0], propensity[0]) if single else (arm, propensity)

    def update(self, outcome: Any, unit: Any = None, arm: Any = None) -> None:
        """Record the outcome of a unit, or of several; with a journal it is on the disk when this returns.

        Args:
            outcome: Outcome, a number, or n of them.
            unit: Id of the unit, or n ids. Without, outcomes are those of the units assigned last, if none else waits.
            arm: The arm that the unit got, to be checked against the assignment.

        Raises:
            TypeError: If the outcome is not a number.
            ValueError: If the outcome is not finite, the unit is unknown or has its outcome already, it is not clear whose
                outcome it is, or the arm is not the one assigned. Nothing is recorded then.
            OSError: If the journal cannot be written. Nothing is recorded then, and the call may be repeated.
        """
        units = self._register.waiting_units(unit)
        values = self._check_outcomes(outcome, units)
        self._register.check_arms(units, arm)
        self._write({"event": "outcome", "units": units, "outcome": values.tolist()})
        self._register.observe(units, values.tolist())
        with contextlib.suppress(Exception):  # the outcome is safe; assign will raise the error again
            self._learner.learn(self._register.arrivals)

    def correct(self, outcome: Any, unit: Any) -> None:
        """Replace the outcome of a unit, or of several; with a journal both outcomes are on the disk.

        The estimate has the outcome as corrected. Propensities and predictions of units that were assigned meanwhile stay
        what they were; later ones rest on all outcomes as they now are. A correction must not depend on which arms later
        units got.

        Args:
            outcome: Outcome, a number, or n of them.
            unit: Id of the unit, or n ids.

        Raises:
            TypeError: If the outcome is not a number, or no unit is named.
            ValueError: If the outcome is not finite, or a unit is unknown or has no outcome. Nothing is recorded then.
            OSError: If the journal cannot be written. Nothing is recorded then, and the call may be repeated.
        """
        if unit is None:
            raise TypeError("unit must name the units to correct, got None.")
        units = self._register.observed_units(unit)
        values = self._check_outcomes(outcome, units)
        self._write({"event": "correct", "units": units, "outcome": values.tolist()})
        self._register.correct(units, values.tolist())
        self._learner.forget()  # and learn anew, from all outcomes in the order in which they came

    def close_arm(self, arm: int) -> None:
        """Assign no more units to a treatment. Its effect is estimated from the units that could have got it.

        Raises:
            ValueError: If it is no treatment (arm 0 stays), is not open, or the only one that is open.
            OSError: If the journal cannot be written. Nothing is recorded then, and the call may be repeated.
        """
        self._set_open(arm, False)

    def open_arm(self, arm: int) -> None:
        """Assign units to a treatment from now on: one of `num_arms` that was not among `open_arms`, or was closed.

        It is compared with the units of the control that could have got it, those assigned while both were open.

        Raises:
            ValueError: If it is no treatment, or open already.
            OSError: If the journal cannot be written. Nothing is recorded then, and the call may be repeated.
        """
        self._set_open(arm, True)

    def _set_open(self, arm: int, is_open: bool) -> None:
        arms = [a for a in self.open_arms if a != arm] + [arm] * is_open
        if not 1 <= check_count(arm, "arm", 0) < self.num_arms or (arm in self.open_arms) == is_open or len(arms) < 2:
            raise ValueError(
                f"arm must be a treatment, 1 to {self.num_arms - 1}, that is {'closed' if is_open else 'open'} and not the "
                f"only one that is open, got {arm}; open are {self.open_arms}."
            )
        self._write({"event": "arms", "open": sorted(arms)})
        self.open_arms = sorted(arms)

    def withdraw(self, unit: Any) -> None:
        """Record that the outcome of a unit, or of several, will never come; with a journal it is on the disk.

        They stay in the estimate, through the share of outcomes that their arm loses.

        Args:
            unit: Id of the unit, or n ids.

        Raises:
            ValueError: If a unit is unknown, has its outcome, or was withdrawn already. Nothing is recorded then.
            OSError: If the journal cannot be written. Nothing is recorded then, and the call may be repeated.
        """
        if unit is None:
            raise TypeError("unit must name the units to withdraw, got None.")
        units = self._register.waiting_units(unit)
        self._write({"event": "withdraw", "units": units})
        self._register.withdraw(units)

    # ---- what is known

    @property
    def num_units(self) -> int:
        """Number of units assigned."""
        return len(self._register)

    @property
    def num_observed(self) -> int:
        """Number of units whose outcome is recorded."""
        return len(self._register.arrivals)

    @property
    def pending(self) -> list[int | str]:
        """Ids of the units that wait for their outcome, in the order of assignment."""
        return self._register.pending

    @property
    def log(self) -> TreatmentLog:
        """Every unit: covariates, arm, outcome, propensity, predictions; also as a table, see `TreatmentLog`."""
        return self._register.log(self._register.num_blind if self._learner.needs_outcomes else 0, self.covariate_names)

    @property
    def history(self) -> Tensor:
        """Every unit as a policy reads it, (n, d + 3): covariates, arm, outcome, mask (0 where the outcome is pending)."""
        return self.log.history

    def estimate(self, level: float = 0.95) -> AteEstimate:
        """Effect, standard error and intervals; units that wait or are lost are allowed for (`observation.py`).

        The first unit, about which nothing was known, does not enter, unless the policy was given the location of outcomes
        (`blind_start.py`).

        `interval` is for one look at a time fixed beforehand; look as often as you like at `confidence_sequence`. Warns,
        once, if an arm has too few events, if it loses more outcomes than the other, or if real outcomes look binary.

        Raises:
            ValueError: If fewer than two outcomes are known, or the level is not within (0, 1).
        """
        log = self.log
        found = log.estimate(level, self.tightest_at, self.outcome_space)
        for kind, message in estimate_warnings(log, self.outcome_space):
            if kind not in self._warned:
                self._warned.add(kind)
                warn_user(message)
        return found

    def report(self, level: float = 0.95) -> TrialReport:
        """Flow of units and outcomes in each arm, means and effects, as a trial report has them (CONSORT 2010)."""
        return trial_report(self.log, self.estimate(level))

    def running(self, level: float = 0.95) -> AteEstimate:
        """The same after each unit that enters the estimate, in the order of assignment: tensors (num_units,)."""
        return self.log.running(level, self.tightest_at, self.outcome_space)

    # ---- files

    @classmethod
    def load(cls, path: str | Path, policy: Any = None, *, nuisance: Any = None, journal: bool = True) -> Any:
        """Load an experiment and go on with it: the same log, the same next propensity and arm.

        No code in the file is run. An assignment that was written but never told, because the process was killed, is
        among the `pending`.

        Args:
            path: A journal, or what `save` wrote; the two are alike.
            policy: Policy whose weights the file's replace (in a copy); needed for one that is not of this package.
            nuisance: Again what the experiment was run with, if it was.
            journal: Go on journalling into the file. With False the file is only read, neither locked nor changed.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, damaged, foreign, in use, or of another experiment; or if a policy or a
                nuisance must be given again.
        """
        return cls._load(path, journal, lambda header, entries: cls._rebuild(header, entries, policy, nuisance))

    @classmethod
    def _rebuild(cls, header: dict[str, Any], entries: list[dict[str, Any]], policy: Any, nuisance: Any) -> Any:
        if header["kind"] != cls.__name__:
            raise ValueError(f"it holds a {header['kind']}; use {header['kind']}.load.")
        if header["has_nuisance"] != (nuisance is not None):
            raise ValueError("give nuisance= again." if header["has_nuisance"] else "it was run without a nuisance.")
        restored = plain_to_policy(header["policy"], None, policy)
        experiment = cls(restored, header["covariate_dim"], nuisance=nuisance, **header["options"])
        experiment._header = header
        for entry in entries:
            experiment._replay(entry)
        return experiment

    def _describe(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in ("refit_every", "clip", "tightest_at", "seed")}
        if self.outcome_space != "real":
            space = self.outcome_space
            options["outcome_space"] = space if isinstance(space, str) else list(space)
        if self.num_arms != 2:
            options["num_arms"] = self.num_arms
        if len(self._first_open) < self.num_arms:
            options["open_arms"] = self._first_open
        if (fill := self._register.fill) is not None:
            options["missing_covariates"] = fill.tolist() if isinstance(fill, Tensor) else fill
        if self.covariate_names is not None:
            options["covariate_names"] = self.covariate_names
        return {
            "kind": type(self).__name__,
            "covariate_dim": self.covariate_dim,
            "options": options,
            "has_nuisance": self._has_nuisance,
            "policy": policy_to_plain(self.policy),
        }

    def _replay(self, entry: dict[str, Any]) -> None:
        """Take up one entry of a file; propensities and predictions are read, never computed anew."""
        if entry["event"] == "assign":
            names = ("covariates", "arm", "propensity", "predicted")
            columns = (torch.tensor(entry[name], dtype=torch.float64) for name in names)
            self._register.add(entry["units"], *columns, gaps=entry.get("missing"))
            self.covariate_names = entry.get("names", self.covariate_names)
        elif entry["event"] == "outcome":
            self._register.observe(self._register.waiting_units(entry["units"]), entry["outcome"])
        elif entry["event"] == "correct":
            self._register.correct(self._register.observed_units(entry["units"]), entry["outcome"])
        elif entry["event"] == "arms":
            self.open_arms = list(entry["open"])
        elif entry["event"] == "withdraw":
            self._register.withdraw(self._register.waiting_units(entry["units"]))
        else:
            raise ValueError(f"it holds an event '{entry['event']}' that this version does not know.")
        self._entries.append(entry)

    # ---- inside

    def _check_outcomes(self, outcome: Any, units: list[Any]) -> Tensor:
        values = as_finite_tensor(outcome, "outcome", dtype=torch.float64).detach().cpu()
        if values.ndim > 1 or len(values) != len(units):
            raise ValueError(f"outcome must have one number for each of {len(units)} units, got {tuple(values.shape)}.")
        if (values.abs() > _LARGEST).any():
            raise ValueError(f"outcome must be within ± {_LARGEST:g}, got {values.tolist()}: give it in larger units.")
        check_outcomes(values, self.outcome_space)
        return values

    def _chance(self, number: int) -> Tensor:
        """The uniform number that decides about a unit; it depends on the seed and the unit's number alone."""
        generator = torch.Generator().manual_seed(seed_for(self.seed, f"unit {number}"))
        return torch.rand((), generator=generator, dtype=torch.float64)

    def _propose(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Executed propensity (n,) or (n, K) and predictions (n, K) for covariates (n, d), from what has been learnt."""
        proposed, predicted = self._learner.propose(rows, self._register.arrivals, len(self._register))
        is_open = torch.zeros(self.num_arms, dtype=torch.bool)
        is_open[self.open_arms] = True
        executed = executed_propensity(proposed, self.clip, is_open)
        if (ends := outcome_range(self.outcome_space)) is not None:
            predicted = predicted.clamp(*ends)
        return executed.expand(len(rows), *[self.num_arms][: self.num_arms - 2]), predicted
