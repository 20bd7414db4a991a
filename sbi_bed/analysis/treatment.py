"""Pictures of treatment experiments: who is given what, what is known of the effect, and what a design loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from ..diagnostics.treatment.plan import TreatmentPlan
from ..diagnostics.treatment.report import TreatmentReport
from ..inference.experiments.treatment.a2ipw import AteEstimate
from ..utils.checks import check_choice
from .style import BLUE, GREY, PALETTE, names_of

__all__ = [
    "plot_allocation",
    "plot_efficiency",
    "plot_gate_weights",
    "plot_regret",
    "plot_running_effect",
    "plot_treatment_plan",
]


def plot_allocation(
    covariate: Any,
    propensities: Mapping[str, Any],
    oracle: Any = None,
    *,
    clip: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the probability of arm 1 against one covariate, e.g. after more and more units, and the Neyman rule.

    Args:
        covariate: Values of the covariate, (n,), in its own unit.
        propensities: Label -> propensity at each, (n,).
        oracle: Neyman propensity at each, (n,), if known.
        clip: Draws the limits clip and 1 − clip.
        ax: Axes to draw on and return; the current ones if None.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> age = torch.linspace(20, 60, 9)
        >>> ax = plot_allocation(
        ...     age, {"200 units": 0.2 + 0.01 * age}, oracle=age / 80, clip=0.05, ax=Figure().add_subplot()
        ... )
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['200 units', 'oracle']
    """
    axes: Any = plt.gca() if ax is None else ax
    x = torch.as_tensor(covariate).flatten()
    shades = torch.linspace(0.35, 1.0, max(len(propensities), 1)).tolist() if len(propensities) > 1 else [1.0]
    for (label, values), shade in zip(propensities.items(), shades, strict=False):
        axes.plot(x, torch.as_tensor(values).flatten(), color=BLUE, alpha=shade, label=label)
    if oracle is not None:
        axes.plot(x, torch.as_tensor(oracle).flatten(), color="black", linestyle="--", label="oracle")
    if clip is not None:
        for limit in (clip, 1 - clip):
            axes.axhline(limit, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xlabel="covariate", ylabel="probability of arm 1", ylim=(0, 1), title="Who is treated")
    axes.legend(fontsize=8)
    return axes


def plot_running_effect(running: AteEstimate, effect: float | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw the estimated effect against the number of units, with its interval at each and at all times.

    Args:
        running: Of one experiment, e.g. `TreatmentExperiment.running()`: tensors (T,). Of one effect among several, take
            `experiment.log.contrast(arm).running()`.
        effect: The true effect, or another to compare with, if any.
        ax: Axes to draw on and return; the current ones if None.

    Raises:
        ValueError: If there are several effects.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from sbi_bed.inference.experiments.treatment.a2ipw import estimate_ate
        >>> running = estimate_ate([1.0, 3.0, 2.0])  # or of an experiment: `experiment.running()`
        >>> plot_running_effect(running, effect=1.5, ax=Figure().add_subplot()).get_xlabel()
        'units'
    """
    if running.num_arms > 2:
        raise ValueError(
            f"there are {running.num_arms - 1} effects: draw that of one arm, log.contrast(arm).running()."
        )
    axes: Any = plt.gca() if ax is None else ax
    units = running.num_units
    sequence, wald = (
        [end.nan_to_num(posinf=torch.nan, neginf=torch.nan) for end in ends]
        for ends in (running.confidence_sequence, running.interval)
    )
    share = f"{running.level:.0%}"
    axes.fill_between(units, *sequence, color=BLUE, alpha=0.15, linewidth=0, label=f"{share}, at all times")
    axes.fill_between(units, *wald, color=BLUE, alpha=0.3, linewidth=0, label=f"{share}, at one time fixed beforehand")
    axes.plot(units, running.ate, color=BLUE, label="estimate")
    if effect is not None:
        axes.axhline(effect, color="black", linestyle="--", linewidth=1, label="effect")
    final, half = float(running.ate[-1]), float((running.ate - sequence[0])[-1].nan_to_num(1.0))
    axes.set(xlabel="units", ylabel="average treatment effect", ylim=(final - 4 * half, final + 4 * half))
    axes.set_title("What is known of the effect")
    axes.legend(fontsize=8)
    return axes


def plot_regret(reports: Mapping[str, TreatmentReport], *, smooth: int = 10, ax: Axes | None = None) -> Axes:
    """Draw how far designs are from the best one, unit by unit: mean and two standard errors.

    Args:
        reports: Label -> report.
        smooth: Number of units in a row that are averaged.
        ax: Axes to draw on and return; the current ones if None.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from sbi_bed.diagnostics import run_treatment_study, treatment_report
        >>> from sbi_bed.policies import CoinFlip, NonContextualNeyman
        >>> from sbi_bed.simulators import two_arm_benchmark
        >>> problem, designs = two_arm_benchmark(), {"coin": CoinFlip(0), "adaptive": NonContextualNeyman(0)}
        >>> studies = {name: run_treatment_study(problem, design, 60, 5, seed=0) for name, design in designs.items()}
        >>> reports = {name: treatment_report(study) for name, study in studies.items()}
        >>> ax = plot_regret(reports, smooth=20, ax=Figure().add_subplot())
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['coin', 'adaptive']
    """
    axes: Any = plt.gca() if ax is None else ax
    for (label, report), colour in zip(reports.items(), PALETTE * len(reports), strict=False):
        width = max(1, min(smooth, len(report.regret_curve)))
        curves = (report.regret_curve, report.regret_curve_stderr)
        mean, stderr = (curve.unfold(0, width, width).mean(-1) for curve in curves)
        units = torch.arange(len(mean)) * width + (width + 1) / 2
        axes.plot(units, mean, color=colour, label=label)
        axes.fill_between(units, mean - 2 * stderr, mean + 2 * stderr, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="units", ylabel="(V(e) − V*) / V*", yscale="log", title="What a design loses")
    axes.legend(fontsize=8)
    return axes


def plot_efficiency(reports: Mapping[str, TreatmentReport], *, ax: Axes | None = None) -> Axes:
    """Draw T·MSE / V* of designs as bars with two standard errors; 1 is the best possible.

    Args:
        reports: Label -> report.
        ax: Axes to draw on and return; the current ones if None.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from sbi_bed.diagnostics import run_treatment_study, treatment_report
        >>> from sbi_bed.policies import CoinFlip, NonContextualNeyman
        >>> from sbi_bed.simulators import two_arm_benchmark
        >>> problem, designs = two_arm_benchmark(), {"coin": CoinFlip(0), "adaptive": NonContextualNeyman(0)}
        >>> studies = {name: run_treatment_study(problem, design, 60, 5, seed=0) for name, design in designs.items()}
        >>> reports = {name: treatment_report(study) for name, study in studies.items()}
        >>> [label.get_text() for label in plot_efficiency(reports, ax=Figure().add_subplot()).get_yticklabels()]
        ['coin', 'adaptive']
    """
    axes: Any = plt.gca() if ax is None else ax
    means, stderrs = zip(*(report.efficiency for report in reports.values()), strict=True)
    place = list(range(len(reports)))[::-1]
    colours = [PALETTE[k % len(PALETTE)] for k in range(len(place))]  # as `plot_regret` has them
    axes.barh(place, means, xerr=[2 * s for s in stderrs], color=colours, alpha=0.7, error_kw={"ecolor": "black"})
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(place, list(reports))
    axes.set(xlabel="T·MSE / V*, ± 2 standard errors", title="Precision against the best possible")
    return axes


def plot_treatment_plan(
    plan: TreatmentPlan, what: Literal["half_width", "power", "stopped"] = "half_width", *, ax: Axes | None = None
) -> Axes:
    """Draw what to expect of each design against the number of units: mean and two standard errors.

    Args:
        plan: What `plan_treatment` returned.
        what: "half_width" of the interval; "power", how often it excludes 0; or "stopped", how often the confidence
            sequence has excluded 0 by then.
        ax: Axes to draw on and return; the current ones if None.

    Raises:
        ValueError: If `what` is none of these.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from sbi_bed.diagnostics import plan_treatment
        >>> from sbi_bed.policies import CoinFlip, NonContextualNeyman
        >>> from sbi_bed.simulators import multi_arm_benchmark
        >>> problem = multi_arm_benchmark(sds=(1.0, 3.0), means=(0.0, 1.0))
        >>> designs = {"coin": CoinFlip(0), "adaptive": NonContextualNeyman(0)}
        >>> plan = plan_treatment(problem, designs, num_units=[40, 80], num_experiments=20, seed=0)
        >>> ax = plot_treatment_plan(plan, "power", ax=Figure().add_subplot())
        >>> [text.get_text() for text in ax.get_legend().get_texts()], ax.get_xlabel()
        (['coin', 'adaptive'], 'units')
    """
    labels = {
        "half_width": f"half-width of the {plan.level:.0%} interval",
        "power": "power",
        "stopped": "stopped by then",
    }
    check_choice(what, "what", list(labels))
    axes: Any = plt.gca() if ax is None else ax
    means, stderrs = getattr(plan, what), getattr(plan, f"{what}_stderr")
    for label, mean, stderr, colour in zip(plan.designs, means, stderrs, PALETTE * len(means), strict=False):
        axes.plot(plan.num_units, mean, color=colour, marker=".", label=label)
        axes.fill_between(plan.num_units, mean - 2 * stderr, mean + 2 * stderr, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="units", ylabel=labels[what], title="What to expect of the trial")
    if what != "half_width":
        axes.set_ylim(0, 1)
    axes.legend(fontsize=8)
    return axes


def plot_gate_weights(weights: Any, names: Sequence[str] | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw how the weights of experts shift with the units, one stacked on the other.

    Args:
        weights: Weight of each of K experts before each unit, (T, K), or of many experiments, (E, T, K), then averaged.
        names: Names of the experts.
        ax: Axes to draw on and return; the current ones if None.

    Raises:
        ValueError: If the weights do not have two or three dimensions, or names do not fit.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = plot_gate_weights([[0.5, 0.5], [0.2, 0.8], [0.1, 0.9]], ["rough", "smooth"], ax=Figure().add_subplot())
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['rough', 'smooth']
    """
    axes: Any = plt.gca() if ax is None else ax
    weights = torch.as_tensor(weights).detach().double()
    if weights.ndim not in (2, 3):
        raise ValueError(f"weights must have shape (T, K) or (E, T, K), got {tuple(weights.shape)}.")
    weights = weights.reshape(-1, *weights.shape[-2:]).mean(0)
    labels = names_of(names, [f"expert {k + 1}" for k in range(weights.shape[-1])], "expert")
    colours = [PALETTE[k % len(PALETTE)] for k in range(len(labels))]
    axes.stackplot(torch.arange(len(weights)), *weights.T, labels=labels, colors=colours, alpha=0.7)
    axes.set(xlabel="units", ylabel="weight", ylim=(0, 1), title="Which expert is believed")
    axes.margins(x=0)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return axes
