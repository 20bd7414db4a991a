"""What a user should know of an estimate: few events, loss that differs, delay that depends on outcomes, binary outcomes."""

from __future__ import annotations

import math
from typing import Any

from .effect import arm_events
from .log import TreatmentLog
from .observation import ObservationRates, delay_dependence

__all__ = ["estimate_warnings"]

_FEWEST = 5.0  # effective events of an arm
_CLEAR = 3.0  # standard errors by which shares differ
_LOOKS_BINARY = 20  # outcomes, all 0 or 1
_RARE = 1e-4  # p-value of a dependence between delay and outcome; estimates are looked at again and again


def estimate_warnings(log: TreatmentLog, outcome_space: Any) -> list[tuple[str, str]]:
    """Kind and text of each warning about the estimate from a log."""
    found, contrasts = [], {arm: log.contrast(arm) for arm in range(1, log.num_arms)}
    contrasts = {arm: part for arm, part in contrasts.items() if len(part) > 0}
    outcomes = log.outcome[log.observed]
    if outcome_space == "real":
        events: dict[int, float] = {}
        for arm, part in contrasts.items():
            events |= zip((0, arm), arm_events(part.arm, part.outcome, part.propensity, part.observed), strict=True)
        few = [f"arm {a} has {k:.1f}" for a, k in events.items() if k < _FEWEST]
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
    for arm, part in contrasts.items():
        if not part.observed.all():
            found += [(f"{kind} {arm}", text) for kind, text in _about_loss(part.observation, arm)]
    return found + _about_delay(log)


def _about_delay(log: TreatmentLog) -> list[tuple[str, str]]:
    if log.delay is None or log.age is None:
        return []
    for arm in range(log.num_arms):
        mine = log.arm == arm
        tau, p, num = delay_dependence(*(part[mine] for part in (log.outcome, log.observed, log.delay, log.age)))
        if p < _RARE:
            text = f"outcomes of arm {arm} that come late are {'larger' if tau > 0 else 'smaller'} than those that come soon"
            text += f" (Kendall's τ {tau:.2f} from {num} units, p = {p:.1g}). Estimates assume that delay does not depend on"
            return [("delay", f"{text} outcomes: wait until all outcomes are there before you look at this one.")]
    return []


def _about_loss(found: ObservationRates | None, arm: int) -> list[tuple[str, str]]:
    if found is None:
        text = (
            f"an arm has no outcome yet: the effect of arm {arm} cannot be estimated, its standard error is infinite."
        )
        return [("arm", text)]
    if int(found.num_decided.min()) == 0:
        return []
    shares = found.final.tolist()
    variance = sum(p * (1 - p) / int(n) for p, n in zip(shares, found.num_decided, strict=True))
    if abs(shares[1] - shares[0]) <= _CLEAR * math.sqrt(variance):
        return []
    lost = " and ".join(
        f"{1 - share:.0%} of the outcomes of arm {a}" for a, share in zip((0, arm), shares, strict=True)
    )
    text = f"{lost} do not come. The estimate weights by these shares."
    return [("loss", f"{text} It is right if loss within an arm does not depend on outcomes or covariates.")]
