r"""The log of a treatment experiment: what was known of each unit, what it was given, and what came of it.

One row a unit, in the order of assignment: covariates, arm, propensity of arm 1 and predicted outcomes as they were at
assignment, and the outcome. As a table its columns are t, unit, the covariates, arm, outcome, propensity, f0 and f1; what
EconML calls X, T, Y and a user-supplied propensity is then at hand. With K > 2 arms there are a propensity and a prediction
of each, p0, p1, … and f0, f1, ….

The effect of arm a against arm 0 rests on the units that could have got either; a unit of a third arm counts for its
predictions only. So each effect is estimated from a log of two arms.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....simulators.treatment.arms import arm_chances
from ....utils.checks import check_count
from ....utils.files import write_atomically
from .a2ipw import AteEstimate
from .blind_start import start_blind
from .effect import arm_events, arm_scores, effect_scores, estimate_effect
from .observation import ObservationRates, observation_rates
from .risk_ratio import RiskRatio, estimate_ratio

__all__ = ["TreatmentLog"]


@dataclass(frozen=True)
class TreatmentLog:
    """Units of one experiment, or of many side by side.

    Attributes:
        covariates: Shape (..., T, d), in their own units.
        arm: 0 … K − 1, arm 0 the control, (..., T).
        outcome: Shape (..., T); 0 where it is not yet observed.
        propensity: Probability of arm 1 at assignment, (..., T); with K > 2 arms of each arm, (..., T, K).
        predicted: Outcomes of each arm as predicted at assignment, (..., T, K).
        observed: Whether the outcome has arrived, (..., T).
        units: Ids of the units of a single experiment, T of them; their numbers if None.
        delay: Number of assignments between a unit's and its outcome, (T,), of a single experiment; 0 if None.
        age: Number of assignments since a unit's, (T,). If None, no unit without outcome is waiting: all are lost.
        withdrawn: Whether a unit was withdrawn, (T,); none if None.
        corrected: Whether an outcome was corrected later, (T,); none if None.
        incomplete: Whether a covariate was missing and was filled, (T,); none if None.
        covariate_names: Names of the covariates; x1, x2, … if None.
        num_blind: Number of first units whose predictions rest on no outcome and no known location of outcomes.

    Example:
        >>> log = TreatmentLog(
        ...     torch.zeros(3, 1),
        ...     *torch.tensor([[1.0, 0, 1], [2.0, 1, 3], [0.5, 0.5, 0.5]]),
        ...     predicted=torch.zeros(3, 2),
        ...     observed=torch.tensor([True, True, True]),
        ... )
        >>> log.estimate().ate
        2.6666666666666665
        >>> log.columns()["outcome"]
        [2.0, 1.0, 3.0]
    """

    covariates: Tensor
    arm: Tensor
    outcome: Tensor
    propensity: Tensor
    predicted: Tensor
    observed: Tensor
    units: Sequence[int | str] | None = None
    delay: Tensor | None = None
    age: Tensor | None = None
    withdrawn: Tensor | None = None
    num_blind: int = 0
    corrected: Tensor | None = None
    incomplete: Tensor | None = None
    covariate_names: Sequence[str] | None = None

    @property
    def num_arms(self) -> int:
        """Number K of arms."""
        return self.predicted.shape[-1]

    @property
    def chances(self) -> Tensor:
        """Probability of each arm at assignment, (..., T, K)."""
        given = self.propensity.ndim > self.arm.ndim
        return self.propensity if given else arm_chances(self.propensity, 2)

    def __len__(self) -> int:
        return self.arm.shape[-1]

    def __getitem__(self, index: Any) -> TreatmentLog:
        """One experiment of a batch, or several."""
        if self.arm.ndim < 2:
            raise IndexError("this is the log of a single experiment; read its units as columns().")
        names = ("covariates", "arm", "outcome", "propensity", "predicted", "observed")
        return TreatmentLog(**{name: getattr(self, name)[index] for name in names}, num_blind=self.num_blind)

    @property
    def history(self) -> Tensor:
        """What a policy reads, (..., T, d + 3): covariates, arm, outcome, mask (0 where the outcome is not observed)."""
        rest = (self.arm, self.outcome, self.observed)
        return torch.cat([self.covariates, torch.stack([x.to(self.covariates) for x in rest], -1)], -1)

    @property
    def scores(self) -> Tensor:
        """A2IPW scores of the units that enter the estimate, (..., number of them), of a log of two arms.

        Where outcomes are missing, these are the units that are old enough, weighted by the rate at which their arm's
        outcomes come (`observation.py`); while an arm has no outcome, the units whose outcomes are there. Of the first
        `num_blind` units only those enter that have an outcome before them (`blind_start.py`).

        Raises:
            ValueError: If there are many experiments and outcomes are missing, or more than two arms.
        """
        if self.num_arms > 2:
            raise ValueError(
                f"scores are those of one effect, there are {self.num_arms - 1}: take contrast(arm).scores."
            )
        return effect_scores(*self._entering()[0])

    def contrast(self, arm: int) -> TreatmentLog:
        """The log for the effect of one arm against arm 0: that arm is now arm 1, and all arms but these two are arm 2.

        Units that could not have got both arms are left out. The propensity is the probability of both, (..., T', 2).

        Raises:
            ValueError: If there is no such arm.

        Example:
            >>> chances = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [0.25, 0.25, 0.5]])  # arm 2 came later
            >>> arm, outcome, seen = torch.tensor([1.0, 2, 0]), torch.zeros(3), torch.tensor([True] * 3)
            >>> log = TreatmentLog(torch.zeros(3, 0), arm, outcome, chances, torch.zeros(3, 3), seen)
            >>> log.contrast(2).arm, log.contrast(2).propensity.tolist()
            (tensor([1., 0.]), [[0.25, 0.5], [0.25, 0.5]])
        """
        return self._contrast(arm)[0]

    def _contrast(self, arm: int) -> tuple[TreatmentLog, Tensor]:
        """The log of a contrast, and which units are in it, (T,)."""
        if not 1 <= check_count(arm, "arm") < self.num_arms:
            raise ValueError(f"arm must be one of 1 to {self.num_arms - 1}, to be compared with arm 0, got {arm}.")
        chances = self.chances[..., [0, arm]]
        kept = (chances > 0).all(-1).unsqueeze(0).flatten(0, -2).all(0)
        if self.num_arms == 2:
            return self, kept
        other = torch.where(self.arm == arm, 1.0, torch.where(self.arm == 0, 0.0, 2.0)).to(self.arm)
        return replace(self, arm=other, propensity=chances, predicted=self.predicted[..., [0, arm]])._where(kept), kept

    def subgroup(self, members: Any) -> TreatmentLog:
        """The log of some units, for the effect among them: `log.subgroup(log.covariates[:, 0] > 50).estimate()`.

        Who is a member may depend on covariates only, and is to be fixed before outcomes are seen.

        Args:
            members: Whether each unit is one, (T,).

        Raises:
            ValueError: If there is not one truth value for each unit, or no member.
        """
        members = torch.as_tensor(members)
        if members.dtype != torch.bool or members.shape != (len(self),) or not members.any():
            raise ValueError(
                f"members must be {len(self)} truth values, one a unit and not all False, got {members.dtype} of shape "
                f"{tuple(members.shape)}."
            )
        return self._where(members)

    def _where(self, kept: Tensor) -> TreatmentLog:
        """The log of the units that are kept, (T,)."""
        wide = {name: getattr(self, name)[..., kept, :] for name in ("covariates", "predicted")}
        wide["propensity"] = self.propensity[
            (..., kept, slice(None)) if self.propensity.ndim > self.arm.ndim else (..., kept)
        ]
        plain = {name: getattr(self, name)[..., kept] for name in ("arm", "outcome", "observed")}
        names = ("delay", "age", "withdrawn", "corrected", "incomplete")
        own = {name: None if getattr(self, name) is None else getattr(self, name)[kept] for name in names}
        units = None if self.units is None else [unit for unit, there in zip(self.units, kept, strict=True) if there]
        return replace(self, **wide, **plain, **own, units=units, num_blind=int(kept[: self.num_blind].sum()))

    def running(self, level: float = 0.95, tightest_at: int = 200, outcome_space: Any = "real") -> AteEstimate:
        """Estimates after each unit that enters, in the order of assignment: tensors (..., T), or (..., T, K − 1).

        Args:
            level: Level of the intervals.
            tightest_at: Number of units at which the confidence sequence is tightest, for real outcomes.
            outcome_space: "real", "binary" or (low, high); see `TreatmentExperiment`.

        Raises:
            ValueError: If there are many experiments and outcomes are missing, or an outcome lies outside the space.
        """
        options = {"level": level, "tightest_at": tightest_at, "outcome_space": outcome_space}
        if self.num_arms == 2:
            return self._running(1, **options)[0]
        logs = [self._contrast(arm) for arm in range(1, self.num_arms)]
        found = [log._running(self.num_arms - 1, **options) for log, _ in logs]
        enters = torch.zeros(len(logs), len(self), dtype=torch.bool)
        for row, (_, kept), (_, entering) in zip(enters, logs, found, strict=True):
            row[kept] = entering
        return _side_by_side([part for part, _ in found], enters)

    def _running(self, num_effects: int, **options: Any) -> tuple[AteEstimate, Tensor]:
        """Estimates of one effect after each unit that enters, of `num_effects`, and which units enter, (T,)."""
        parts, enters = self._entering()
        if not enters.any():
            if num_effects == 1:
                raise ValueError("an estimate needs a unit with an outcome before it: there is none yet.")
            empty = torch.full((*self.arm.shape[:-1], 1), torch.nan, dtype=torch.float64)
            none = torch.zeros_like(empty).long()
            blank = AteEstimate(empty, empty, (empty, empty), (empty, empty), none, options["level"], (empty, empty))
            return _unknown(blank), enters
        found = estimate_effect(*parts, **options, num_effects=num_effects)
        if self.observed.all():
            return found, enters
        found = replace(found, num_units=parts[4].cumsum(-1))
        if self.observation is None:  # nothing is known of one arm
            found = _unknown(found)
        return found, enters

    def estimate(self, level: float = 0.95, tightest_at: int = 200, outcome_space: Any = "real") -> AteEstimate:
        """Estimate from all units that enter: numbers, or tensors (...) for many experiments; see `running`.

        With K > 2 arms tensors (..., K − 1).

        Raises:
            ValueError: If fewer than two outcomes have been observed, or the level is not within (0, 1).
        """
        if (num_observed := int(self.observed.sum(-1).min())) < 2:
            raise ValueError(f"an estimate needs at least 2 observed outcomes, there are {num_observed}.")
        return self.running(level, tightest_at, outcome_space).at(
            (..., -1) if self.num_arms == 2 else (..., -1, slice(None))
        )

    def risk_ratio(self, level: float = 0.95) -> RiskRatio:
        """Mean outcome of each treatment over that of the control, of a single experiment; see `RiskRatio`.

        Raises:
            ValueError: If there are many experiments, fewer than two outcomes, or a negative one.
        """
        if self.arm.ndim != 1 or int(self.observed.sum()) < 2 or bool((self.outcome[self.observed] < 0).any()):
            raise ValueError("a risk ratio needs a single experiment with at least 2 outcomes, none of them negative.")
        each = []
        for arm in range(1, self.num_arms):
            log = self.contrast(arm)
            parts, enters = log._entering()
            known = bool(enters.any()) and (bool(log.observed.all()) or log.observation is not None)
            events = arm_events(parts[0], parts[1], parts[2], parts[4])
            each.append(estimate_ratio(arm_scores(*parts), events) if known else None)
        return RiskRatio.of(each, level)

    @property
    def observation(self) -> ObservationRates | None:
        """How outcomes come in, of a single experiment; None while an arm has no outcome."""
        return observation_rates(self.arm, self.observed, self.delay, self.age, self.withdrawn)

    def _entering(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """Arm, outcome, chances, predictions, observed and rates of the units that enter, and which these are, (T,)."""
        predicted, enters = start_blind(self.arm, self.outcome, self.observed, self.predicted, self.num_blind)
        rates = None
        if not self.observed.all():
            if self.arm.ndim != 1:
                raise ValueError(
                    "scores of many experiments side by side need every outcome; take one experiment at a time."
                )
            found = self.observation
            enters = enters & (self.observed if found is None else found.included)
            rates = None if found is None else found.rates[enters]
        plain = (self.arm[..., enters], self.outcome[..., enters])
        wide = (self.chances[..., enters, :], predicted[..., enters, :])
        return (*plain, *wide, self.observed[..., enters], rates), enters  # pyright: ignore[reportReturnType]

    def columns(self, covariate_names: Sequence[str] | None = None) -> dict[str, list[Any]]:
        """The log of a single experiment as columns; the outcome is None where it is not yet observed.

        Args:
            covariate_names: Names of the covariates; those of the log if None.

        Raises:
            ValueError: If there are many experiments, or the names do not fit.
        """
        if self.arm.ndim != 1:
            raise ValueError(f"only a single experiment is a table, got a batch of shape {tuple(self.arm.shape[:-1])}.")
        names = covariate_names or self.covariate_names or [f"x{i + 1}" for i in range(self.covariates.shape[-1])]
        propensity = {"propensity": self.propensity} if self.num_arms == 2 else _numbered("p", self.propensity)
        predictions = _numbered("f", self.predicted)
        taken = ("t", "unit", "arm", "outcome", *propensity, *predictions)
        if len(names) != self.covariates.shape[-1] or len({*names, *taken}) < len(names) + len(taken):
            raise ValueError(
                f"covariate_names must be {self.covariates.shape[-1]} different names, none of {', '.join(taken)}, "
                f"got {list(names)}."
            )
        outcome = [y if seen else None for y, seen in zip(self.outcome.tolist(), self.observed.tolist(), strict=True)]
        count = list(range(1, len(self) + 1))
        return {
            "t": count,
            "unit": [t - 1 for t in count] if self.units is None else list(self.units),
            **dict(zip(names, self.covariates.T.tolist(), strict=True)),
            "arm": [int(a) for a in self.arm.tolist()],
            "outcome": outcome,
            **{name: column.tolist() for name, column in {**propensity, **predictions}.items()},
        }

    def to_csv(self, path: str | Path, covariate_names: Sequence[str] | None = None) -> None:
        """Write `columns` as a CSV file; an outcome that is not yet observed is an empty cell."""
        columns = self.columns(covariate_names)
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        write_atomically(path, text.getvalue().encode())

    def to_pandas(self, covariate_names: Sequence[str] | None = None) -> Any:
        """`columns` as a pandas DataFrame; an `ImportError` if pandas is not installed."""
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError as err:
            raise ImportError("to_pandas needs pandas (pip install pandas); columns() needs nothing.") from err
        return pandas.DataFrame(self.columns(covariate_names))


def _numbered(letter: str, columns: Tensor) -> dict[str, Tensor]:
    """Columns of a tensor (T, K), named by arm."""
    return {f"{letter}{a}": column for a, column in enumerate(columns.unbind(-1))}


def _unknown(found: AteEstimate) -> AteEstimate:
    """The same estimate with nothing known of its error."""
    unknown = torch.full_like(found.ate, torch.inf)
    ends = -unknown, unknown
    return replace(found, stderr=unknown, interval=ends, confidence_sequence=ends, joint_interval=ends)


def _side_by_side(found: list[AteEstimate], enters: Tensor) -> AteEstimate:
    """Estimates (..., T', K − 1) of all effects after each unit that enters any of them, of each its latest.

    Args:
        found: Of each effect, after each unit that enters it.
        enters: Which units enter each effect, (K − 1, T).
    """
    places = enters.cumsum(-1)[:, enters.any(0)] - 1  # −1 before the first

    def spread(values: list[Tensor], before: float) -> Tensor:
        each = []
        for value, place in zip(values, places, strict=True):
            latest = value[..., place.clamp_min(0)]
            each.append(torch.where(place < 0, torch.full_like(latest, before), latest))
        return torch.stack(each, -1)

    def ends(name: str) -> tuple[Tensor, Tensor]:
        low, high = zip(*(getattr(part, name) for part in found), strict=True)
        return spread(list(low), -torch.inf), spread(list(high), torch.inf)

    return AteEstimate(
        spread([part.ate for part in found], torch.nan),
        spread([part.stderr for part in found], torch.inf),
        ends("interval"),
        ends("confidence_sequence"),
        spread([part.num_units for part in found], 0),
        found[0].level,
        ends("joint_interval"),
        len(found) + 1,
    )
