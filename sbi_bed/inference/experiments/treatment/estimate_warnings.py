"""What a user should know of an estimate: too few events, loss that differs between arms, outcomes that look binary."""

from __future__ import annotations

import math
from typing import Any

from .effect import arm_events
from .log import TreatmentLog
from .observation import ObservationRates

__all__ = ["estimate_warnings"]

_FEWEST = 5.0  # effective events of an arm
_CLEAR = 3.0  # standard errors by which shares differ
_LOOKS_BINARY = 20  # outcomes, all 0 or 1


def estimate_warnings(log: TreatmentLog, outcome_space: Any) -> list[tuple[str, str]]:
    """Kind and text of each warning about the estimate from a log."""
    found = []
    outcomes = log.outcome[log.observed]
    if outcome_space == "real":
        columns = (log.arm, log.outcome, log.propensity, log.observed)
        few = [f"arm {a} has {k:.1f}" for a, k in enumerate(arm_events(*columns)) if k < _FEWEST]
        if few:
            text = (
                "outcomes hardly vary yet: "
                + " and ".join(few)
                + f" effective events, asymptotic intervals need {_FEWEST:g}"
            )
            found.append(("events", f"{text}. Give outcome_space= for binary or bounded outcomes."))
        if len(outcomes) >= _LOOKS_BINARY and bool(((outcomes == 0) | (outcomes == 1)).all()):
            text = f"all {len(outcomes)} outcomes are 0 or 1. With outcome_space='binary' intervals are valid for any number"
            found.append(("binary", f"{text} of events."))
    if not log.observed.all():
        found += _about_loss(log.observation)
    return found


def _about_loss(found: ObservationRates | None) -> list[tuple[str, str]]:
    if found is None:
        return [("arm", "an arm has no outcome yet: the effect cannot be estimated, its standard error is infinite.")]
    if int(found.num_decided.min()) == 0:
        return []
    shares = found.final.tolist()
    variance = sum(p * (1 - p) / int(n) for p, n in zip(shares, found.num_decided, strict=True))
    if abs(shares[1] - shares[0]) <= _CLEAR * math.sqrt(variance):
        return []
    lost = " and ".join(f"{1 - share:.0%} of the outcomes of arm {a}" for a, share in enumerate(shares))
    text = f"{lost} do not come. The estimate weights by these shares."
    return [("loss", f"{text} It is right if loss within an arm does not depend on outcomes or covariates.")]
