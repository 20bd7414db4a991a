"""Many simulated treatment experiments side by side, with their logs and the truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...inference.experiments.treatment.log import TreatmentLog
from ...policies.treatment.base import TreatmentPolicy
from ...policies.treatment.baselines import predictor_for
from ...simulators.treatment.problem import TreatmentProblem
from ...simulators.treatment.stream import assign_units
from ...utils.checks import check_count
from ...utils.seeding import seeded

__all__ = ["TreatmentStudy", "run_treatment_study"]


@dataclass(frozen=True)
class TreatmentStudy:
    """What E experiments of T units logged, and the truth.

    Attributes:
        log: Their logs, (E, T).
        effect: True average treatment effects, (E,), or with K > 2 arms (E, K − 1).
        bound: Smallest asymptotic variances V*, (E,).
        oracle: Neyman propensities e*(X_t), (E, T) or (E, T, K).
        regret: (σ_1 + σ_0)² (e_t − e*)² / (e_t (1 − e_t)) at X_t, (E, T), whose mean is V(e_t) − V*.
    """

    log: TreatmentLog
    effect: Tensor
    bound: Tensor
    oracle: Tensor
    regret: Tensor


@torch.no_grad()
def run_treatment_study(
    problem: TreatmentProblem,
    policy: TreatmentPolicy,
    num_units: int,
    num_experiments: int | None = None,
    *,
    nuisance: TreatmentPolicy | None = None,
    seed: int | None = None,
) -> TreatmentStudy:
    """Let a policy assign `num_units` units in each experiment. Each outcome is known before the next unit comes.

    Units and their outcomes in either arm depend on the seed alone, so policies can be compared pairwise.

    Args:
        problem: A batch (E,) of problems; or one, which is then run `num_experiments` times.
        policy: The policy; its predictions serve in the estimate, if it makes any.
        num_units: Number T of units.
        num_experiments: Number E of experiments, for a single problem.
        nuisance: Policy to predict outcomes with instead, e.g. to give a coin the same predictions as another design.
        seed: Seed of units, outcomes and assignments.

    Raises:
        TypeError: If the policy is not a `TreatmentPolicy`.
        ValueError: If policy, nuisance and problem are for different numbers of covariates or arms, or the number of
            experiments is missing, or not the problem's.

    Example:
        >>> from sbi_bed.policies import CoinFlip
        >>> from sbi_bed.simulators.treatment.problem import two_arm_benchmark
        >>> study = run_treatment_study(two_arm_benchmark(), CoinFlip(0), 20, num_experiments=3, seed=0)
        >>> study.regret[0, 0], study.log.estimate().ate.shape
        (tensor(4., dtype=torch.float64), torch.Size([3]))
    """
    num_units, num = check_count(num_units, "num_units"), _num_experiments(problem, num_experiments)
    if not isinstance(policy, TreatmentPolicy):
        raise TypeError(f"policy must be a TreatmentPolicy, got {policy!r}.")
    if policy.covariate_dim != problem.covariate_dim:
        raise ValueError(
            f"the policy is for {policy.covariate_dim} covariates, the problem has {problem.covariate_dim}."
        )
    if policy.num_arms != problem.num_arms:
        raise ValueError(f"the policy is for {policy.num_arms} arms, the problem has {problem.num_arms}.")
    predictor = predictor_for(policy, nuisance)
    with seeded(seed):
        if problem.batch_shape:
            covariates = problem.draw_covariates(num_units)
        else:
            covariates = problem.draw_covariates(num * num_units).reshape(num, num_units, problem.covariate_dim)
        both = problem.outcomes(covariates)
        uniform = torch.rand(covariates.shape[:-1], dtype=torch.float64)
    history, propensity, (mean, _) = assign_units(policy, covariates, both, uniform, predictor)
    arm, outcome, observed = history[..., -3:].unbind(-1)
    log = TreatmentLog(
        covariates, arm, outcome, propensity, mean.double(), observed > 0, num_blind=int(predictor.needs_outcomes)
    )
    return TreatmentStudy(
        log,
        problem.effect.expand(num, *problem.effect.shape[len(problem.batch_shape) :]),
        problem.bound.expand(num),
        problem.oracle(covariates),
        problem.regret(covariates, log.propensity),
    )


def _num_experiments(problem: TreatmentProblem, num_experiments: int | None) -> int:
    if len(problem.batch_shape) == 1 and num_experiments in (None, problem.batch_shape[0]):
        return problem.batch_shape[0]
    if problem.batch_shape or num_experiments is None:
        raise ValueError(
            "num_experiments= is the number of times to run a single problem; a batch of problems of shape (E,) is run once "
            f"each. Got {num_experiments} for a batch of shape {tuple(problem.batch_shape)}."
        )
    return check_count(num_experiments, "num_experiments")
