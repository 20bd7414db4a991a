"""Pictures of a single experiment: where it looked, how its posterior shrank, and the discount curve of a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ..utils.history import unpack_history
from .style import BLUE, GREY, ORANGE

__all__ = ["plot_discounting", "plot_experiment_in_plane", "plot_posterior_spread"]


def plot_experiment_in_plane(
    history: Tensor,
    draws: Tensor,
    truth: Tensor | None = None,
    *,
    refined_after: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw an experiment whose designs and parameters are points of one plane, e.g. `LocationFinding(1)`.

    Args:
        history: Trials (n, 2 + O + 1), padded or not; numbered in their order.
        draws: Posterior draws (N, 2).
        truth: The true point (2,), if known.
        refined_after: Trials before a refinement; later designs get another colour.
        ax: Axes to draw on and return; the current ones if None.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> history = torch.tensor(
        ...     [[0.0, 1.0, 0.3, 1.0], [0.5, 1.0, 0.9, 1.0]]
        ... )  # two points, their signals, and the mask
        >>> ax = plot_experiment_in_plane(history, torch.randn(50, 2), ax=Figure().add_subplot())
        >>> [text.get_text() for text in ax.texts]
        ['1', '2']
    """
    axes: Any = plt.gca() if ax is None else ax
    designs = torch.as_tensor(unpack_history(history, 2)[0])
    first = len(designs) if refined_after is None else refined_after
    axes.scatter(*draws.T, s=4, alpha=0.3, color=GREY, linewidths=0, rasterized=True, label="posterior draws")
    axes.plot(*designs.T, color=BLUE, linewidth=0.6, alpha=0.5)
    for part, colour, label in (
        (designs[:first], BLUE, "designs"),
        (designs[first:], ORANGE, "designs, refined policy"),
    ):
        if len(part):
            axes.scatter(*part.T, s=110, color=colour, edgecolor="white", linewidths=0.8, zorder=3, label=label)
    for number, point in enumerate(designs, 1):
        axes.annotate(
            str(number),
            point.tolist(),
            ha="center",
            va="center",
            color="white",
            fontsize=7,
            zorder=4,
            annotation_clip=True,
        )
    if truth is not None:
        axes.scatter(*truth[:, None], marker="*", s=90, color="black", edgecolor="white", zorder=5, label="true source")
    axes.set(xlabel="x", ylabel="y", title="Where the experiment looked", aspect="equal")
    axes.margins(0.1)
    legend = axes.legend(fontsize=8, framealpha=0.9, markerscale=0.8, loc="best")
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    return axes


def plot_posterior_spread(
    draws: Sequence[Tensor], truth: Tensor | None = None, *, refined_after: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draw how the posterior shrinks with the trials.

    Args:
        draws: Posterior draws (N, P) after 0, 1, 2, … trials.
        truth: The true parameters (P,), if known: adds the distance of the posterior mean from them.
        refined_after: Trials before a refinement, marked by a line.
        ax: Axes to draw on and return; the current ones if None.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> draws = [torch.randn(100, 2) / n for n in (1, 2, 3)]  # after no trial, one, and two
        >>> ax = plot_posterior_spread(draws, truth=torch.zeros(2), ax=Figure().add_subplot())
    """
    axes: Any = plt.gca() if ax is None else ax
    trials = range(len(draws))
    spread = [float(cloud.var(0).sum().sqrt()) for cloud in draws]
    axes.plot(trials, spread, "o-", color=BLUE, label="posterior sd (root of the total variance)")
    if truth is not None:
        error = [float((cloud.mean(0) - truth).norm()) for cloud in draws]
        axes.plot(trials, error, "s--", color=ORANGE, label="distance of the posterior mean from the truth")
    if refined_after is not None:
        axes.axvline(refined_after, color=GREY, linewidth=1)
        axes.annotate(" policy refined", (refined_after, 0.95), xycoords=("data", "axes fraction"), fontsize=8)
    axes.set(xlabel="trials", ylabel="distance", yscale="log", title="What it came to know")
    axes.legend(fontsize=8, loc="lower left")
    return axes


def plot_discounting(history: Tensor, log_k: Tensor, *, ax: Axes | None = None) -> Axes:
    """Draw choices between amounts now and later, with the posterior of the curve 1 / (1 + k · delay).

    Args:
        history: Trials of designs (immediate amount, delayed amount, delay in days) and outcome 1 where the delayed
            amount was chosen, shape (n, 5), padded or not.
        log_k: Posterior draws (N,) of log k, k per day.
        ax: Axes to draw on and return; the current ones if None.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> history = torch.tensor([[50.0, 100.0, 10.0, 1.0, 1.0], [20.0, 100.0, 100.0, 0.0, 1.0]])
        >>> ax = plot_discounting(history, torch.randn(100) - 4.0, ax=Figure().add_subplot())
    """
    axes: Any = plt.gca() if ax is None else ax
    designs, outcomes = (torch.as_tensor(part) for part in unpack_history(history, 3))
    share, delay, later = designs[:, 0] / designs[:, 1], designs[:, 2].clamp_min(0.5), outcomes[:, 0] == 1
    days = torch.logspace(float(delay.min().log10()) - 0.2, float(delay.max().log10()) + 0.2, 200)
    curves = 1 / (1 + log_k.exp().unsqueeze(-1) * days)
    low, middle, high = curves.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=0)
    axes.fill_between(days, low, high, color="0.85", label="indifference, 90 % interval")
    axes.plot(days, middle, color="0.4", label="indifference, median")
    axes.scatter(delay[later], share[later], marker="o", color=BLUE, label="chose later", zorder=3)
    axes.scatter(delay[~later], share[~later], marker="s", color=ORANGE, label="chose now", zorder=3)
    for number, point in enumerate(zip(delay.tolist(), share.tolist(), strict=True), 1):
        axes.annotate(str(number), point, xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set(
        xscale="log",
        xlabel="delay, days",
        ylabel="immediate amount / delayed amount",
        title="Questions in the order asked",
    )
    axes.set_ylim(-0.03, 1.1)
    axes.legend(fontsize=8, loc="lower left")
    return axes
