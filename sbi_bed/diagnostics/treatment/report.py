r"""Quality of a treatment design: precision, coverage of its intervals, regret, allocation.

Over experiments i of T units with true effects τ_i and smallest variances V*_i,

    T·MSE / V* = mean_i T (τ̂_i − τ_i)² / V*_i,    regret / V* = mean_i (V(e_t) − V*_i) / V*_i,

the latter by the identity V(e) − V* = E[(σ_1 + σ_0)² (e − e*)² / (e (1 − e))]. The regret is the loss of the design alone,
without noise of outcomes and errors of predictions. So a few hundred experiments rank designs; T·MSE would need tens of
thousands. If T·MSE / V* is near one plus the regret of the whole run, errors of predictions cost little. With K > 2 arms
squared errors are summed over the K − 1 effects, as V is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...policies.treatment.base import check_units
from ...policies.treatment.mixture_of_experimenters import MixtureOfExperimenters
from ...utils.checks import check_count
from ...utils.text_table import format_table
from ..models.calibration import mean_and_stderr
from .study import TreatmentStudy

__all__ = ["TreatmentReport", "gate_weights", "treatment_report", "treatment_table"]


@dataclass(frozen=True)
class TreatmentReport:
    """Figures of a design, each as (mean, standard error) over experiments.

    Attributes:
        efficiency: T·MSE / V*; 1 is the best that is possible for many units.
        regret: Whole-run mean of (V(e_t) − V*) / V*.
        late_regret: The same over the last units.
        coverage: How often the Wald interval after T units holds the effect; mean over effects.
        sequence_coverage: How often the confidence sequence holds all effects at all times.
        repeated_coverage: How often Wald intervals would, looked at after each unit from the 20th on.
        allocation_gap: Mean |e_t − e*| over the last units.
        regret_curve: (V(e_t) − V*) / V* by unit, mean over experiments, (T,).
        regret_curve_stderr: Its standard error, (T,).
        level: Level of the intervals.
    """

    efficiency: tuple[float, float]
    regret: tuple[float, float]
    late_regret: tuple[float, float]
    coverage: tuple[float, float]
    sequence_coverage: tuple[float, float]
    repeated_coverage: tuple[float, float]
    allocation_gap: tuple[float, float]
    regret_curve: Tensor
    regret_curve_stderr: Tensor
    level: float

    def __str__(self) -> str:
        return treatment_table({"design": self})


def treatment_report(
    study: TreatmentStudy, level: float = 0.95, num_late: int = 50, tightest_at: int = 200
) -> TreatmentReport:
    """Judge a design by a study.

    Args:
        study: What `run_treatment_study` returned.
        level: Level of the intervals.
        num_late: Number of last units that late figures are of.
        tightest_at: As for `TreatmentExperiment`.

    Raises:
        ValueError: If there are fewer than two units, or not so many late ones, or the level is not within (0, 1).

    Example:
        >>> from sbi_bed.diagnostics import run_treatment_study
        >>> from sbi_bed.policies import CoinFlip
        >>> from sbi_bed.simulators.treatment.problem import two_arm_benchmark
        >>> study = run_treatment_study(two_arm_benchmark(), CoinFlip(0), 100, num_experiments=200, seed=0)
        >>> treatment_report(study).regret
        (0.25, 0.0)
    """
    num_units = len(study.log)
    if not 2 <= num_units >= check_count(num_late, "num_late"):
        raise ValueError(f"the study has {num_units} units: at least 2 are needed, and num_late={num_late}.")
    effect, bound = study.effect.unsqueeze(1), study.bound.unsqueeze(-1)
    running = study.log.running(level, tightest_at)
    wald, sequence = (_holds(ends, effect) for ends in (running.interval, running.confidence_sequence))
    relative = study.regret / bound
    late = slice(num_units - num_late, None)
    squares = num_units * (running.ate[:, -1] - study.effect).square().reshape(len(bound), -1).sum(-1) / study.bound
    return TreatmentReport(
        efficiency=mean_and_stderr(squares),
        regret=mean_and_stderr(relative.mean(-1)),
        late_regret=mean_and_stderr(relative[:, late].mean(-1)),
        coverage=mean_and_stderr(wald[:, -1].double().reshape(len(bound), -1).mean(-1)),
        sequence_coverage=mean_and_stderr(sequence.flatten(1).all(-1).double()),
        repeated_coverage=mean_and_stderr(wald[:, min(19, num_units - 1) :].flatten(1).all(-1).double()),
        allocation_gap=mean_and_stderr((study.log.propensity - study.oracle)[:, late].abs().flatten(1).mean(-1)),
        regret_curve=relative.mean(0),
        regret_curve_stderr=relative.std(0) / len(relative) ** 0.5,
        level=level,
    )


def treatment_table(reports: Mapping[str, TreatmentReport]) -> str:
    """Reports of several designs as a table of text, one design a row.

    Example:
        >>> from sbi_bed.diagnostics import run_treatment_study
        >>> from sbi_bed.policies import CoinFlip
        >>> from sbi_bed.simulators import two_arm_benchmark
        >>> study = run_treatment_study(two_arm_benchmark(), CoinFlip(0), 50, num_experiments=5, seed=0)
        >>> len(treatment_table({"coin": treatment_report(study)}).splitlines())
        3
    """
    names = ("efficiency", "regret", "late_regret", "allocation_gap", "coverage", "sequence_coverage")
    header = ("", "T·MSE/V*", "regret/V*", "late", "|e − e*|", "coverage", "at all times")
    rows = [
        (label, *("{:.3f} ± {:.3f}".format(*getattr(report, name)) for name in names))
        for label, report in reports.items()
    ]
    return format_table(header, rows)


@torch.no_grad()
def gate_weights(policy: MixtureOfExperimenters, history: Tensor) -> Tensor:
    """Weights of a mixture's experts before each unit and after the last, (*batch, T + 1, K), float64.

    Args:
        policy: The mixture.
        history: Units (*batch, T, d + 3), whose mask is the same in the whole batch.

    Raises:
        ValueError: If the history is none of this policy's.

    Example:
        >>> from sbi_bed.policies import MixtureOfExperimenters, NonContextualNeyman
        >>> mixture = MixtureOfExperimenters([NonContextualNeyman(1), NonContextualNeyman(1)])
        >>> gate_weights(mixture, torch.zeros(3, 4)).shape
        torch.Size([4, 2])
    """
    history = check_units(history, policy.covariate_dim)
    state = policy.initial_state(history.shape[:-2])
    weights = [policy.gate(state)]
    for unit in history.unbind(-2):
        if bool((unit[..., -1] > 0).any()):
            state = policy.update(state, unit[..., :-3], unit[..., -3], unit[..., -2])
        weights.append(policy.gate(state))
    return torch.stack(weights, -2)


def _holds(ends: tuple[Tensor, Tensor], effect: Tensor) -> Tensor:
    return (ends[0] <= effect) & (effect <= ends[1])
