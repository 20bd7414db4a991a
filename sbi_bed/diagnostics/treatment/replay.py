r"""Replays of a recorded randomised trial under another design.

The trial's units come in random order. The design proposes e_t(x) for arm 1; a unit that really got arm a enters with
probability

    c e_t(x)^a (1 − e_t(x))^{1−a} / (p^a (1 − p)^{1−a}),    c = min(p, 1 − p) / (1 − clip),

where p is the trial's own share of arm 1; otherwise it is skipped (Li et al. 2011, arXiv 1003.5956, for p = ½). A unit
enters with probability c whatever its covariates, so the units that enter have the trial's distribution of covariates.
Their arms are drawn with e_t, and their outcomes are real. About c n of n units enter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...inference.experiments.treatment.log import TreatmentLog
from ...policies.treatment.base import TreatmentPolicy
from ...policies.treatment.baselines import predictor_for
from ...simulators.treatment.recorded_trial import RecordedTrial
from ...utils.checks import check_count
from ...utils.seeding import seeded

__all__ = ["TrialReplay", "replay_trial"]


@dataclass(frozen=True)
class TrialReplay:
    """Replays of one trial in different orders.

    Attributes:
        log: Units that entered, (R, T): all replays end where the first one runs out of units.
        rows: Which rows of the trial they are, (R, T).
        trial: The trial.
    """

    log: TreatmentLog
    rows: Tensor
    trial: RecordedTrial

    def __str__(self) -> str:
        found = self.log.estimate()
        mean, spread = float(found.ate.mean()), float(found.ate.std()) if len(found.ate) > 1 else math.nan
        return (
            f"trial {self.trial.effect:.4g} ± {self.trial.effect_stderr:.2g} from {len(self.trial)} units; "
            f"{len(found.ate)} replays of {len(self.log)} units: mean {mean:.4g}, sd {spread:.2g}, "
            f"mean stderr {float(found.stderr.mean()):.2g}"
        )


@torch.no_grad()
def replay_trial(
    trial: RecordedTrial,
    policy: TreatmentPolicy,
    num_replays: int = 1,
    *,
    nuisance: TreatmentPolicy | None = None,
    seed: int | None = None,
) -> TrialReplay:
    """Replay a trial under a policy.

    Args:
        trial: The trial.
        policy: The policy; its predictions serve in the estimate, if it makes any.
        num_replays: Number R of replays, each in an order of its own.
        nuisance: Policy to predict outcomes with instead.
        seed: Seed of orders and assignments; policies compare pairwise under one seed.

    Raises:
        TypeError: If the policy is not a `TreatmentPolicy`.
        ValueError: If policy, nuisance and trial are for different numbers of covariates, or the policy proposes a
            propensity beyond its own clip.

    Example:
        >>> from sbi_bed.policies import NonContextualNeyman
        >>> generator = torch.Generator().manual_seed(0)
        >>> arm = (torch.arange(600) % 3 == 0).double()
        >>> outcome = arm + torch.randn(600, generator=generator, dtype=torch.float64) * (1 + arm)
        >>> trial = RecordedTrial(torch.zeros(600, 0), arm, outcome)
        >>> replay = replay_trial(trial, NonContextualNeyman(0), num_replays=20, seed=0)
        >>> 170 < len(replay.log) < 220
        True
        >>> bool((replay.log.estimate().ate.mean() - trial.effect).abs() < 2 * trial.effect_stderr)
        True
    """
    num_replays = check_count(num_replays, "num_replays")
    if not isinstance(policy, TreatmentPolicy):
        raise TypeError(f"policy must be a TreatmentPolicy, got {policy!r}.")
    if policy.covariate_dim != trial.covariates.shape[-1]:
        raise ValueError(
            f"the policy is for {policy.covariate_dim} covariates, the trial has {trial.covariates.shape[-1]}."
        )
    if policy.num_arms != 2:
        raise ValueError(f"a recorded trial has two arms, the policy is for {policy.num_arms}.")
    predictor = predictor_for(policy, nuisance)
    with seeded(seed):
        order = torch.stack([torch.randperm(len(trial)) for _ in range(num_replays)])
        uniform = torch.rand(order.shape, dtype=torch.float64)
    pool = _Pool(trial, policy, order, uniform)
    states: list[Any] = [learner.initial_state((num_replays,)) for learner in (policy, predictor)]
    taken: list[tuple[Tensor, Tensor]] = []
    predictions: list[Tensor] = []
    while (entry := pool.next_units(states[0])) is not None:
        x, arm, outcome = (column[entry[0]] for column in (trial.covariates, trial.arm, trial.outcome))
        predictions.append(predictor.predict(states[0] if predictor is policy else states[1], x)[0].double())
        taken.append(entry)
        states[0] = policy.update(states[0], x, arm, outcome)
        if predictor is not policy:
            states[1] = predictor.update(states[1], x, arm, outcome)
    if not taken:
        raise ValueError(f"no unit of the trial's {len(trial)} entered; the trial is too small to replay.")
    rows, propensity = (torch.stack(column, 1) for column in zip(*taken, strict=True))
    columns = (trial.covariates[rows], trial.arm[rows], trial.outcome[rows], propensity, torch.stack(predictions, 1))
    observed = torch.ones_like(rows, dtype=torch.bool)
    return TrialReplay(TreatmentLog(*columns, observed, num_blind=int(predictor.needs_outcomes)), rows, trial)


class _Pool:
    """Hands out, for each replay, the next unit of its order that enters."""

    def __init__(self, trial: RecordedTrial, policy: TreatmentPolicy, order: Tensor, uniform: Tensor):
        self.trial, self.policy, self.order, self.uniform = trial, policy, order, uniform
        self.place = torch.zeros(len(order), dtype=torch.long)
        share = trial.propensity
        self.rate = min(share, 1 - share) / (1 - policy.clip)
        self.given = share * trial.arm + (1 - share) * (1 - trial.arm)  # probability of the arm that each unit got
        self.block = math.ceil(3 / self.rate)  # units looked at together; 19 in 20 times one of them enters

    def next_units(self, state: Any) -> tuple[Tensor, Tensor] | None:
        """Rows and propensities (R,) of the units that enter next; None once any replay has no units left."""
        size, found = self.order.shape[1], torch.zeros(len(self.order), dtype=torch.bool)
        row, propensity = torch.zeros_like(self.place), torch.zeros(len(self.order), dtype=torch.float64)
        while not found.all():
            place = self.place + torch.arange(self.block).unsqueeze(-1)  # (block, R)
            there = place < size
            place = place.clamp_max(size - 1)
            rows, chance = self.order.gather(1, place.T).T, self.uniform.gather(1, place.T).T
            proposed = self.policy.propensity(state, self.trial.covariates[rows]).double()
            if ((proposed - 0.5).abs() > 0.5 - self.policy.clip + 1e-6).any():
                extreme = float(proposed.flatten()[(proposed - 0.5).abs().argmax()])
                raise ValueError(f"the policy proposes {extreme:.4g}, beyond its clip, {self.policy.clip}.")
            wanted = torch.where(self.trial.arm[rows] > 0, proposed, 1 - proposed)
            acceptance = self.rate * wanted / self.given[rows]
            enters = there & (chance < acceptance)
            hit, first = enters.any(0) & ~found, enters.double().argmax(0)
            if (~found & ~hit & ~there[-1]).any():
                return None
            row = torch.where(hit, rows.gather(0, first[None])[0], row)
            propensity = torch.where(hit, proposed.gather(0, first[None])[0], propensity)
            step = torch.where(hit, first + 1, self.block)
            self.place = torch.where(found, self.place, self.place + step)
            found = found | hit
        return row, propensity
