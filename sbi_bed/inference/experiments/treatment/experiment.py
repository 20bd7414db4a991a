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
from torch import Tensor, nn

from ....policies.treatment.base import TreatmentPolicy
from ....policies.treatment.baselines import CoinFlip, predictor_for
from ....simulators.treatment.arms import clip_shares, draw_arms
from ....utils.checks import as_finite_tensor, check_count
from ....utils.seeding import seed_for, seeded
from ....utils.warn_user import warn_user
from ..journal import Journal
from ..saved import SavedExperiment, plain_to_policy, policy_to_plain
from .a2ipw import AteEstimate, check_propensity
from .betting import check_outcome_space, outcome_range
from .estimate_warnings import estimate_warnings
from .log import TreatmentLog
from .nuisance import PastNuisance
from .units import Unit, UnitRegister

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

    Attributes:
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
        contextual, other = isinstance(policy, TreatmentPolicy), isinstance(nuisance, TreatmentPolicy)
        self._regressor = None if nuisance is None or other else PastNuisance(nuisance, self.refit_every, self.num_arms)
        means = CoinFlip(self.covariate_dim, clip=self.clip, num_arms=self.num_arms)
        self._predictor = predictor_for(policy if contextual else means, nuisance if other else None)
        weights = [p for p in policy.parameters() if p.is_floating_point()] if isinstance(policy, nn.Module) else []
        self._dtype, self._device = (weights[0].dtype, weights[0].device) if weights else (torch.float64, "cpu")
        if contextual:
            self._dtype = torch.float64  # float32 would lose outcomes that are small beside their location
        self._register = UnitRegister(self.covariate_dim, self.num_arms)
        self._entries: list[dict[str, Any]] = []
        self._states: list[Any] | None = None
        self._num_learnt = 0
        self._warned: set[str] = set()
        self._header = self._describe()
        self._journal = None if journal is None else Journal.create(journal, self._header)

    # ---- ask and tell

    def assign(self, covariates: Any = (), unit: Any = None) -> tuple[Tensor, Tensor]:
        """Assign the next unit, or several at once, none of which then sees another's outcome.

        Args:
            covariates: Covariates (d,) of a unit, or (n, d) of several, known before treatment.
            unit: Id of the unit, a whole number or a string, or n ids; by default they are numbered from 0 on.

        Returns:
            Arm, and probability of arm 1 that it was drawn with: shape () for one unit, (n,) for several. With K > 2 arms
            the probability of each, (K,) or (n, K).

        Raises:
            TypeError: If covariates are not numbers.
            ValueError: If covariates have the wrong shape or hold NaN or infinity, a unit is known already, or the policy
                proposes no probability strictly between 0 and 1. Nothing is recorded then.
            OSError: If the journal cannot be written. Nothing is recorded then, and the call may be repeated.
        """
        units, rows = self._register.new_units(covariates, unit)
        single = rows.ndim == 1
        rows = rows.reshape(len(units), self.covariate_dim)
        self._learn()
        propensity, predicted = self._propose(rows)
        first = len(self._register)
        chance = torch.stack([self._chance(first + i) for i in range(len(rows))])
        arm = draw_arms(chance, propensity, self.num_arms)
        columns = {"covariates": rows, "arm": arm, "propensity": propensity, "predicted": predicted}
        entry = {"event": "assign", "units": units, **{name: values.tolist() for name, values in columns.items()}}
        self._write(entry)
        self._register.add(units, *columns.values())
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
        values = as_finite_tensor(outcome, "outcome", dtype=torch.float64).detach().cpu()
        if values.ndim > 1 or len(values) != len(units):
            raise ValueError(f"outcome must have one number for each of {len(units)} units, got {tuple(values.shape)}.")
        if (values.abs() > _LARGEST).any():
            raise ValueError(f"outcome must be within ± {_LARGEST:g}, got {values.tolist()}: give it in larger units.")
        self._register.check_arms(units, arm)
        self._check_space(values)
        self._write({"event": "outcome", "units": units, "outcome": values.tolist()})
        self._register.observe(units, values.tolist())
        with contextlib.suppress(Exception):  # the outcome is safe; assign will raise the error again
            self._learn()

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
        needs_outcomes = self._regressor is not None or self._predictor.needs_outcomes
        return self._register.log(self._register.num_blind if needs_outcomes else 0)

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
            self._register.add(entry["units"], *(torch.tensor(entry[name], dtype=torch.float64) for name in names))
        elif entry["event"] == "outcome":
            self._register.observe(self._register.waiting_units(entry["units"]), entry["outcome"])
        elif entry["event"] == "withdraw":
            self._register.withdraw(self._register.waiting_units(entry["units"]))
        else:
            raise ValueError(f"it holds an event '{entry['event']}' that this version does not know.")
        self._entries.append(entry)

    # ---- inside

    def _check_space(self, outcomes: Tensor) -> None:
        ends = outcome_range(self.outcome_space)
        if ends is None:
            return
        wrong = (outcomes < ends[0]) | (outcomes > ends[1])
        if self.outcome_space == "binary":
            wrong = (outcomes != 0) & (outcomes != 1)
        if wrong.any():
            expected = "0 or 1" if self.outcome_space == "binary" else f"between {ends[0]:g} and {ends[1]:g}"
            raise ValueError(f"outcome must be {expected}, as outcome_space says, got {float(outcomes[wrong][0]):g}.")

    def _chance(self, number: int) -> Tensor:
        """The uniform number that decides about a unit; it depends on the seed and the unit's number alone."""
        generator = torch.Generator().manual_seed(seed_for(self.seed, f"unit {number}"))
        return torch.rand((), generator=generator, dtype=torch.float64)

    @torch.no_grad()
    def _learn(self) -> None:
        """Take up the outcomes that have come since, in the order in which they came."""
        learners = self._learners
        if self._states is None:
            self._states = [learner.initial_state() for learner in learners]
        while self._num_learnt < self.num_observed:
            seen = self._register.arrivals[self._num_learnt]
            row = (self._read(seen.covariates), self._read(seen.arm), self._read(seen.outcome))
            with seeded(seed_for(self.seed, f"update {self._num_learnt}")):
                self._states = [
                    learner.update(state, *row) for learner, state in zip(learners, self._states, strict=True)
                ]
            if self._regressor is not None:
                self._regressor.observe(seen.covariates, seen.arm, seen.outcome)
            self._num_learnt += 1

    @property
    def _learners(self) -> list[TreatmentPolicy]:
        """What predicts, and, if it is another policy, what assigns."""
        if not isinstance(self.policy, TreatmentPolicy) or self.policy is self._predictor:
            return [self._predictor]
        return [self._predictor, self.policy]

    @torch.no_grad()
    def _propose(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Propensity (n,) or (n, K) and predictions (n, K) for covariates (n, d), from what has been learnt."""
        states, read = self._states or [], self._read(rows)
        with seeded(seed_for(self.seed, f"propensity {len(self._register)}")):
            if isinstance(self.policy, TreatmentPolicy):
                proposed = self.policy.propensity(states[-1], read)
            else:
                past = self._history_of(self._register.arrivals)
                proposed = torch.stack([_as_propensity(self.policy(past, row), self.num_arms) for row in read])
        proposed = check_propensity(proposed.cpu(), "the policy's propensity")
        if self.num_arms == 2:
            proposed = proposed.clamp(self.clip, 1 - self.clip).expand(len(rows))
        else:
            proposed = clip_shares(proposed / proposed.sum(-1, keepdim=True), self.clip).expand(
                len(rows), self.num_arms
            )
        if self._regressor is not None:
            predicted = self._regressor.predict(rows)
        else:
            predicted = self._predictor.predict(states[0], read)[0]
        predicted = as_finite_tensor(predicted, "the predicted outcomes", last_dim=self.num_arms).double().cpu()
        if (ends := outcome_range(self.outcome_space)) is not None:
            predicted = predicted.clamp(*ends)
        return proposed, predicted.expand(len(rows), self.num_arms)

    def _history_of(self, seen: Sequence[Unit]) -> Tensor:
        """Units as a policy reads them, (n, d + 3)."""
        columns = [torch.cat([u.covariates, u.covariates.new_tensor([u.arm, u.outcome, 1.0])]) for u in seen]
        return self._read(torch.stack(columns) if columns else torch.zeros(0, self.covariate_dim + 3))

    def _read(self, value: Any) -> Tensor:
        return torch.as_tensor(value, dtype=self._dtype, device=self._device)


def _as_propensity(proposed: Any, num_arms: int) -> Tensor:
    """What a callable policy returned: a scalar for two arms, else (K,).

    Raises:
        TypeError: If it is no number.
        ValueError: If it is another number of numbers, or they do not sum to one.
    """
    try:
        value = torch.as_tensor(proposed)
    except (TypeError, ValueError, RuntimeError) as err:
        raise TypeError(f"policy must return the probability of arm 1, a number, got {proposed!r}.") from err
    if num_arms > 2:
        if value.shape != (num_arms,) or abs(float(value.sum()) - 1) > 1e-6:
            raise ValueError(
                f"policy must return {num_arms} probabilities that sum to 1, one an arm, got {proposed!r}."
            )
        return value
    if value.numel() != 1:
        raise ValueError(
            f"policy must return one number, the probability of arm 1, got shape {tuple(value.shape)}: there are two arms, "
            "0 and 1."
        )
    return value.reshape(())
