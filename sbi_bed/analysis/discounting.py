"""Picture of a delay-discounting experiment: the choices made, and the discount curve they imply."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ..utils.history import unpack_history

__all__ = ["plot_discounting"]

_BLUE, _ORANGE = "#0072B2", "#D55E00"


def plot_discounting(history: Tensor, log_k: Tensor, *, ax: Axes | None = None) -> Axes:
    """Draw choices between amounts now and later, with the posterior of the curve 1 / (1 + k · delay).

    Args:
        history: Trials of designs (immediate amount, delayed amount, delay in days) and outcome 1 where the delayed
            amount was chosen, shape (n, 5), padded or not.
        log_k: Posterior draws (N,) of log k, k per day.
        ax: Axes to draw on; the current ones if None.

    Returns:
        The axes.

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
    axes.scatter(delay[later], share[later], marker="o", color=_BLUE, label="chose later", zorder=3)
    axes.scatter(delay[~later], share[~later], marker="s", color=_ORANGE, label="chose now", zorder=3)
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
