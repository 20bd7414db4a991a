r"""Outcomes that come late or never: which units enter an estimate, and with which weight.

Loss and delay may differ between arms, but within an arm they must not depend on covariates or outcomes. An outcome of arm
a is then observed by age k with probability G_a(k), the same for all units of the arm. Age and delay count calls of
`assign`. G_a is the Kaplan–Meier estimate: units that wait are censored at their age, and units that were withdrawn stay
without an outcome for ever,

    G_a(k) = 1 − Π_{j ≤ k} (1 − (outcomes that came at age j) / (units of the arm that could have had theirs at age j)).

With rates G, the score of a unit of age k is

    Γ = f̂_1 − f̂_0 + R A (Y − f̂_1) / (e G_1(k)) − R (1 − A) (Y − f̂_0) / ((1 − e) G_0(k)),

R = 1 if the outcome is there. Its mean is τ whatever f̂ is. Units too young for one of the arms are left out in both arms:
those of an age at which less than half of that arm's outcomes that ever come have come.

That delay does not depend on outcomes can be tested. Among units of an age of at least k whose outcome came by age k, delay
and outcome are then independent in each arm, whatever k is; Kendall's τ tests it, with the k that leaves most units. That
loss does not depend on outcomes cannot be tested, since lost outcomes are not seen.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from scipy.stats import kendalltau
from torch import Tensor

__all__ = ["ObservationRates", "delay_dependence", "observation_rates"]

_MOST_LIMITS = 50  # values of k that are tried
_FEWEST = 10  # units that a dependence is tested with
_SHARE_DUE = 0.5  # of an arm's outcomes that have come at the youngest age that enters


class ObservationRates(NamedTuple):
    """How outcomes come in.

    Attributes:
        rates: G_0 and G_1 at the age of each unit, (T, 2).
        included: Whether a unit is old enough, (T).
        final: Share of outcomes that come at last in each arm, (2,).
        num_decided: Units of each arm that these shares rest on, (2,).
    """

    rates: Tensor
    included: Tensor
    final: Tensor
    num_decided: Tensor


def observation_rates(
    arm: Tensor,
    observed: Tensor,
    delay: Tensor | None = None,
    age: Tensor | None = None,
    withdrawn: Tensor | None = None,
) -> ObservationRates | None:
    """Rates of observation in both arms; None if an arm has no outcome yet.

    Args:
        arm: 0 or 1, (T,); 2 for units of any other arm.
        observed: Whether the outcome is there, (T,).
        delay: Age at which it came, (T,); only read where it is there. None: at once.
        age: Age of each unit, (T,). None: old enough for its outcome to be there if it ever comes.
        withdrawn: Whether it will never come, (T,); none if None.

    Example:
        >>> arm, seen = torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([True, True, True, False, False, False])
        >>> observation_rates(arm, seen).final.tolist()
        [1.0, 0.25]
    """
    arm, observed = arm.long(), observed & (arm < 2)
    delay = torch.zeros(len(arm)).double() if delay is None else delay.double()
    age = torch.full((len(arm),), torch.inf).double() if age is None else age.double()
    limit = age if withdrawn is None else torch.where(withdrawn, torch.inf, age)
    until = torch.where(observed, delay, limit)  # age up to which a unit could have had its outcome
    times = delay[observed].unique()
    curves = []
    for a in range(2):
        mine = arm == a
        if not bool((observed & mine).any()):
            return None
        events = ((delay == times.unsqueeze(-1)) & observed & mine).sum(-1)
        at_risk = ((until >= times.unsqueeze(-1)) & mine).sum(-1)
        curves.append(1 - (1 - events / at_risk.clamp_min(1)).cumprod(0))
    curves = torch.stack(curves, -1).double()  # (times, 2)
    final = curves[-1]
    due = (curves >= _SHARE_DUE * final).all(-1)
    included = age >= times[due.long().argmax()]
    place = torch.searchsorted(times, age, right=True) - 1
    rates = torch.where((place >= 0).unsqueeze(-1), curves[place.clamp_min(0)], 0.0)
    decided = observed | (limit >= times[-1])
    num_decided = torch.stack([(decided & (arm == a)).sum() for a in range(2)])
    return ObservationRates(rates, included, final, num_decided)


def delay_dependence(outcome: Tensor, observed: Tensor, delay: Tensor, age: Tensor) -> tuple[float, float, int]:
    """Kendall's τ of delay and outcome in one arm, its p-value, and the number of units; 0 and 1 if it cannot be tested.

    Args:
        outcome: Shape (n,).
        observed: Whether the outcome is there, (n,).
        delay: Age at which it came, (n,).
        age: Age of each unit, (n,).

    Example:
        >>> outcome, delay, age = torch.arange(30).double(), torch.arange(30).double(), torch.full((30,), 99.0)
        >>> tau, p, num = delay_dependence(outcome, torch.ones(30, dtype=torch.bool), delay, age)
        >>> tau, p < 1e-6, num
        (1.0, True, 30)
    """
    limits = delay[observed].unique()
    if len(limits) > _MOST_LIMITS:
        limits = limits[torch.linspace(0, len(limits) - 1, _MOST_LIMITS).long()]
    kept = observed & (delay <= limits.unsqueeze(-1)) & (age >= limits.unsqueeze(-1))
    if int(kept.sum(-1).max() if len(limits) else 0) < _FEWEST:
        return 0.0, 1.0, 0
    chosen = kept[int(kept.sum(-1).argmax())]
    found: Any = kendalltau(delay[chosen].numpy(), outcome[chosen].numpy())
    tau, p = float(found[0]), float(found[1])
    return (0.0, 1.0, int(chosen.sum())) if math.isnan(tau) else (tau, p, int(chosen.sum()))
