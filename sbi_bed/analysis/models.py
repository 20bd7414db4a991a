"""Pictures of model comparison: calibration, confusion, Bayes factors, probabilities, and how typical the data are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from ..diagnostics.models.calibration import ModelCalibration
from ..diagnostics.models.model_table import ModelReport
from ..diagnostics.typicality import Atypicality
from ..utils.checks import as_finite_tensor
from .style import BLUE, GREY, ORANGE, PALETTE, names_of, plain_ticks

__all__ = ["plot_atypicality", "plot_bayes_factor_recovery", "plot_confusion", "plot_model_probs", "plot_reliability"]


def plot_reliability(
    calibration: ModelCalibration, model_index: int = 1, *, model_name: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw how often a model was true against the probability it was given.

    The grey band is where 95 % of the frequencies of exact probabilities would lie, bars are binomial intervals of 95 %; the
    area of a point grows with the data sets in its bin.

    Args:
        calibration: What `model_calibration` gave.
        model_index: Which model; of two, either tells all.
        model_name: Its name on the axes; "M1" and so on if None.
        ax: Axes to draw on and return; the current ones if None.

    Raises:
        ValueError: If there is no such model.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from sbi_bed.diagnostics import model_calibration
        >>> log_probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]).log()
        >>> calibration = model_calibration(log_probs, torch.tensor([0, 1, 1]), seed=0)
        >>> ax = plot_reliability(calibration, model_name="curved", ax=Figure().add_subplot())
        >>> ax.get_xlabel()
        'probability of “curved”'
    """
    num_models = len(calibration.confusion)
    if not 0 <= model_index < num_models:
        raise ValueError(f"models are numbered from 0 to {num_models - 1}, got {model_index}.")
    axes: Any = plt.gca() if ax is None else ax
    bins, name = calibration.bins, f"M{model_index}" if model_name is None else model_name
    count = bins.count[model_index]
    full = count > 0
    probs, shares = bins.mean_prob[model_index][full], bins.frequency[model_index][full]
    low, high = bins.interval[model_index][full].unbind(-1)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--", zorder=1)
    band = bins.expected[model_index][full].unbind(-1)
    axes.fill_between(probs, *band, color="0.85", linewidth=0, label="exact probabilities, 95 %", zorder=0)
    errors = torch.stack([shares - low, high - shares]).clamp_min(0)
    axes.errorbar(probs, shares, errors, fmt="none", color=BLUE, linewidth=1, capsize=2)
    area = 15 + 100 * count[full] / count.max()
    axes.scatter(probs, shares, s=area, color=BLUE, edgecolor="white", linewidths=0.6, zorder=3, label="observed")
    axes.set(
        xlabel=f"probability of “{name}”",
        ylabel=f"share of data sets made by “{name}”",
        title=f"calibration error {calibration.ece:.4f}; exact: {calibration.ece_floor:.4f}",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
    )
    axes.legend(fontsize=8, loc="best", markerscale=0.7)
    return axes


def plot_confusion(
    calibration: ModelCalibration, *, model_names: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the mean probability given to each model where each is true, with data sets that have it as the most probable.

    Args:
        calibration: What `model_calibration` gave.
        model_names: J names; "M0", "M1", … if None.
        ax: Axes to draw on and return; the current ones if None.

    Raises:
        ValueError: If there is not one name for each model.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from sbi_bed.diagnostics import model_calibration
        >>> log_probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]).log()
        >>> calibration = model_calibration(log_probs, torch.tensor([0, 1, 1]), seed=0)
        >>> ax = plot_confusion(calibration, model_names=["flat", "curved"], ax=Figure().add_subplot())
        >>> ax.texts[0].get_text().split()  # the first model made one data set, and was given 0.9
        ['0.900', '(1)']
    """
    axes: Any = plt.gca() if ax is None else ax
    confusion, count = calibration.confusion, calibration.confusion_count
    names = _names(model_names, len(confusion))
    axes.imshow(confusion, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(confusion.tolist()):
        for j, mean in enumerate(row):
            label = f"{mean:.3f}\n({int(count[i, j])})"
            axes.text(j, i, label, ha="center", va="center", color="white" if mean > 0.5 else "black")
    places = range(len(names))
    axes.set_xticks(places, names)
    axes.set_yticks(places, names)
    axes.set(xlabel="model judged", ylabel="true model", title="Mean probability (times most probable)")
    return axes


def plot_bayes_factor_recovery(
    log_bayes_factor_found: Any, log_bayes_factor_exact: Any, *, linear_to: float = 9.0, ax: Axes | None = None
) -> Axes:
    """Draw log Bayes factors against exact ones.

    Args:
        log_bayes_factor_found: Shape (N,), nats.
        log_bayes_factor_exact: Shape (N,), nats.
        linear_to: Axes are linear up to so many nats, marked grey, and logarithmic beyond.
        ax: Axes to draw on and return; the current ones if None.

    Raises:
        ValueError: If shapes differ or a number is not finite.

    Example:
        >>> from matplotlib.figure import Figure
        >>> plot_bayes_factor_recovery([1.2, -30.0], [1.0, -40.0], ax=Figure().add_subplot()).get_xscale()
        'symlog'
    """
    found = as_finite_tensor(log_bayes_factor_found, "log_bayes_factor_found").detach().cpu()
    exact = as_finite_tensor(log_bayes_factor_exact, "log_bayes_factor_exact").detach().cpu()
    if found.shape != exact.shape:
        raise ValueError(f"found and exact must have one shape, got {tuple(found.shape)} and {tuple(exact.shape)}.")
    axes: Any = plt.gca() if ax is None else ax
    both = torch.cat([found.flatten(), exact.flatten()])
    low, high = float(both.min()), float(both.max())
    axes.axvspan(-linear_to, linear_to, color="0.93", linewidth=0, zorder=0, label=f"|log BF| < {linear_to:g}")
    axes.plot([low, high], [low, high], color=GREY, linewidth=0.8, linestyle="--", zorder=1)
    axes.scatter(exact, found, s=8, alpha=0.5, color=BLUE, linewidths=0, rasterized=True)
    for axis in ("x", "y"):
        getattr(axes, f"set_{axis}scale")("symlog", linthresh=linear_to, linscale=1.2)
        ticks = _symmetric_ticks(linear_to, max(-low, high))
        getattr(axes, f"set_{axis}ticks")(ticks)
        plain_ticks(getattr(axes, f"{axis}axis"))
    limits = min(low, 0.0) - 0.1 * abs(low) - 0.5, max(high, 0.0) + 0.1 * abs(high) + 0.5
    axes.set(
        xlabel="exact log Bayes factor, nats",
        ylabel="log Bayes factor found, nats",
        title="Recovery of Bayes factors",
        xlim=limits,
        ylim=limits,
        aspect="equal",
    )
    axes.legend(fontsize=8, loc="upper left")
    return axes


def plot_model_probs(report: ModelReport, *, ax: Axes | None = None) -> Axes:
    """Draw the model probabilities of observed data sets, with the atypicality of each beside them.

    Args:
        report: What `model_report` gave. Black bars are ± one standard deviation of an ensemble's members.
        ax: Axes to draw on and return; the current ones if None.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from sbi_bed.diagnostics import model_report
        >>> from sbi_bed.inference import ModelPosterior
        >>> from sbi_bed.neural_nets import EvidenceClassifier
        >>> posterior = ModelPosterior(EvidenceClassifier(torch.nn.Identity(), 2, 3), torch.ones(2) / 2, (3,))
        >>> report = model_report(posterior, torch.zeros(4, 3), torch.randn(200, 3), seed=0)
        >>> len(plot_model_probs(report, ax=Figure().add_subplot()).get_yticks())
        4
    """
    axes: Any = plt.gca() if ax is None else ax
    probs, names = report.probs, report.model_names
    num, num_models = probs.shape
    rows, thickness = torch.arange(num), 0.8 / num_models
    for j, name in enumerate(names):
        spread = None if report.spread is None else report.spread[:, j]
        axes.barh(
            rows + (j - (num_models - 1) / 2) * thickness,
            probs[:, j],
            thickness,
            xerr=spread,
            color=PALETTE[j % len(PALETTE)],
            error_kw={"linewidth": 1, "capsize": 1.5},
            label=name,
        )
    for row, (p_value, marked) in enumerate(zip(report.atypicality.p_value.tolist(), report.atypical, strict=True)):
        text = f"p = {p_value:.2g}" + (" atypical" if marked else "")
        axes.annotate(
            text,
            (1.02, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=ORANGE if marked else "black",
            fontweight="bold" if marked else "normal",
            annotation_clip=False,
        )
    axes.annotate("atypicality", (1.02, 1.02), xycoords="axes fraction", fontsize=8, color="0.3")
    axes.set_yticks(rows)
    axes.set(xlabel="probability of the model", ylabel="data set", xlim=(0, 1), ylim=(num - 0.4, -0.6))
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=num_models, frameon=False, borderaxespad=0.2)
    return axes


def plot_atypicality(
    found: Atypicality, *, level: float = 0.01, model_names: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw summaries of simulated and observed data sets in the plane of the simulated ones' first principal components.

    What is odd in other directions does not show here; the stars' colour, by p-value, tells of all.

    Args:
        found: What `atypicality` gave.
        level: Stars of data sets with smaller p-values are orange, the others black.
        model_names: J names; "M0", "M1", … if None.
        ax: Axes to draw on and return; the current ones if None.

    Raises:
        ValueError: If there is not one name for each model, or summaries have a single number.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from sbi_bed.diagnostics import summary_atypicality
        >>> found = summary_atypicality(torch.tensor([[9.0, 0.0]]), torch.rand(200, 2), seed=0)
        >>> ax = plot_atypicality(found, ax=Figure().add_subplot())
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['simulated', 'observed, p < 0.01']
    """
    reference = found.reference_summary
    if reference.shape[-1] < 2:
        raise ValueError("summaries must have at least 2 numbers to be drawn in a plane.")
    index = found.reference_model_index
    axes: Any = plt.gca() if ax is None else ax
    mean = reference.mean(0)
    values, vectors = torch.linalg.eigh((reference - mean).T @ (reference - mean))
    plane = vectors[:, [-1, -2]]
    shares = (values[[-1, -2]] / values.clamp_min(0).sum()).tolist()
    cloud = (reference - mean) @ plane
    if index is None:
        axes.scatter(*cloud.T, s=6, alpha=0.4, color=GREY, linewidths=0, rasterized=True, label="simulated")
    else:
        for j, name in enumerate(_names(model_names, int(index.max()) + 1)):
            style = {"s": 6, "alpha": 0.4, "color": PALETTE[j % len(PALETTE)], "linewidths": 0, "rasterized": True}
            axes.scatter(*cloud[index == j].T, **style, label=f"simulated, {name}")
    stars = (found.summary - mean) @ plane
    marked = found.p_value < level
    for part, colour, label in ((~marked, "black", "observed"), (marked, ORANGE, f"observed, p < {level:g}")):
        if part.any():
            axes.scatter(*stars[part].T, marker="*", s=130, color=colour, edgecolor="white", zorder=3, label=label)
    axes.set(
        xlabel=f"first principal component ({shares[0]:.0%})",
        ylabel=f"second principal component ({shares[1]:.0%})",
        title="Summaries of data sets",
    )
    legend = axes.legend(fontsize=8, loc="best")
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    return axes


def _names(model_names: Sequence[str] | None, num_models: int) -> list[str]:
    return names_of(model_names, [f"M{j}" for j in range(num_models)], "model", "model_names")


def _symmetric_ticks(linear_to: float, largest: float) -> list[float]:
    """… −20, −9, −6, −3, 0, 3, 6, 9, 20, 100, 200, …, for axes that are logarithmic beyond 9."""
    positive, step = [linear_to / 3, 2 * linear_to / 3, linear_to], 10.0
    while step <= 10 * largest:
        positive += [step * factor for factor in (1, 2) if 2 * linear_to < step * factor]
        step *= 10
    return [*(-tick for tick in reversed(positive)), 0.0, *positive]
