"""What a policy and a nuisance have learnt from recorded outcomes: proposed propensities, and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ....policies.treatment.base import TreatmentPolicy
from ....policies.treatment.baselines import CoinFlip, predictor_for
from ....simulators.treatment.arms import arm_chances, as_propensity, clip_shares
from ....utils.checks import as_finite_tensor
from ....utils.seeding import seed_for, seeded
from .a2ipw import check_propensity
from .nuisance import PastNuisance
from .units import Unit

__all__ = ["PastLearner", "executed_propensity"]


class PastLearner:
    """Takes up outcomes in the order in which they come, and proposes for units from these alone.

    Args:
        policy: As for `TreatmentExperiment`, like the other arguments.
        nuisance: What predicts outcomes.
        covariate_dim: Number d of covariates.
        num_arms: Number K of arms.
        clip: Smallest probability of any arm.
        refit_every: Outcomes of an arm between two fits of a regressor.
        seed: Seed of policies that draw at random.
    """

    def __init__(
        self, policy: Any, nuisance: Any, covariate_dim: int, num_arms: int, clip: float, refit_every: int, seed: int
    ):
        self.policy, self.covariate_dim, self.num_arms, self.seed = policy, covariate_dim, num_arms, seed
        contextual, other = isinstance(policy, TreatmentPolicy), isinstance(nuisance, TreatmentPolicy)
        self._regressor = None if nuisance is None or other else PastNuisance(nuisance, refit_every, num_arms)
        means = CoinFlip(covariate_dim, clip=clip, num_arms=num_arms)
        self._predictor = predictor_for(policy if contextual else means, nuisance if other else None)
        weights = [p for p in policy.parameters() if p.is_floating_point()] if isinstance(policy, nn.Module) else []
        self._dtype, self._device = (weights[0].dtype, weights[0].device) if weights else (torch.float64, "cpu")
        if contextual:
            self._dtype = torch.float64  # float32 would lose outcomes that are small beside their location
        # What predicts, and, if it is another policy, what assigns.
        self._learners = [self._predictor] if policy is self._predictor or not contextual else [self._predictor, policy]
        self._states: list[Any] | None = None
        self._num_learnt = 0

    @property
    def needs_outcomes(self) -> bool:
        """Whether predictions before the first outcome mean nothing."""
        return self._regressor is not None or self._predictor.needs_outcomes

    def forget(self) -> None:
        """Drop all that was learnt."""
        self._states, self._num_learnt = None, 0
        if self._regressor is not None:
            self._regressor.forget()

    @torch.no_grad()
    def learn(self, arrivals: Sequence[Unit]) -> None:
        """Take up the outcomes that have come since, in the order in which they came."""
        if self._states is None:
            self._states = [learner.initial_state() for learner in self._learners]
        while self._num_learnt < len(arrivals):
            seen = arrivals[self._num_learnt]
            row = (self._read(seen.covariates), self._read(seen.arm), self._read(seen.outcome))
            with seeded(seed_for(self.seed, f"update {self._num_learnt}")):
                pairs = zip(self._learners, self._states, strict=True)
                self._states = [learner.update(state, *row) for learner, state in pairs]
            if self._regressor is not None:
                self._regressor.observe(seen.covariates, seen.arm, seen.outcome)
            self._num_learnt += 1

    @torch.no_grad()
    def propose(self, rows: Tensor, arrivals: Sequence[Unit], num_units: int) -> tuple[Tensor, Tensor]:
        """Propensity as the policy gives it, and predictions (n, K), for covariates (n, d).

        Args:
            rows: Covariates of the next units.
            arrivals: Units whose outcome is known, which a callable policy reads.
            num_units: Number of units that were assigned before.
        """
        states, read = self._states or [], self._read(rows)
        with seeded(seed_for(self.seed, f"propensity {num_units}")):
            if isinstance(self.policy, TreatmentPolicy):
                proposed = self.policy.propensity(states[-1], read)
            else:
                past = self._history_of(arrivals)
                proposed = torch.stack([_one_proposal(self.policy(past, row), self.num_arms) for row in read])
        if self._regressor is not None:
            predicted = self._regressor.predict(rows)
        else:
            predicted = self._predictor.predict(states[0], read)[0]
        predicted = as_finite_tensor(predicted, "the predicted outcomes", last_dim=self.num_arms).double().cpu()
        return proposed, predicted.expand(len(rows), self.num_arms)

    def _history_of(self, seen: Sequence[Unit]) -> Tensor:
        """Units as a policy reads them, (n, d + 3)."""
        columns = [torch.cat([u.covariates, u.covariates.new_tensor([u.arm, u.outcome, 1.0])]) for u in seen]
        return self._read(torch.stack(columns) if columns else torch.zeros(0, self.covariate_dim + 3))

    def _read(self, value: Any) -> Tensor:
        return torch.as_tensor(value, dtype=self._dtype, device=self._device)


def executed_propensity(proposed: Tensor, clip: float, open_arms: Tensor) -> Tensor:
    """Propensities, (n,) for two arms or (n, K), each at least `clip` in open arms and 0 in others.

    Args:
        proposed: Of the policy, (...) or (..., K).
        clip: Smallest probability of an open arm.
        open_arms: Which arms take units, (K,).

    Raises:
        ValueError: If one is not strictly between 0 and 1.
    """
    proposed = check_propensity(proposed.cpu(), "the policy's propensity")
    if len(open_arms) == 2:
        return proposed.clamp(clip, 1 - clip)
    shares = arm_chances(proposed, len(open_arms)) * open_arms
    return as_propensity(clip_shares(shares / shares.sum(-1, keepdim=True), clip, open_arms))


def _one_proposal(proposed: Any, num_arms: int) -> Tensor:
    """What a callable policy returned for one unit: a scalar for two arms, else (K,).

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
