"""Pictures of people who act on noisy perception: predicted responses, and the ridge of a posterior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from torch import Tensor

from ..diagnostics.actors.identifiability import identifiability
from ..simulators.actors.bayesian_actor import BayesianActor
from ..utils.checks import check_fraction
from ..utils.history import check_history, split_history
from ..utils.seeding import seeded
from .style import BLUE, ORANGE, plain_ticks

__all__ = ["plot_response_bands", "plot_ridge"]


def plot_response_bands(
    simulator: BayesianActor,
    history: Tensor,
    theta: Tensor,
    *,
    level: float = 0.9,
    sigma: float | None = None,
    seed: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw one person's responses over stimuli, with the posterior predictive median and interval.

    Args:
        simulator: The experiment.
        history: The trials, (n, D + 2), padded or not.
        theta: Posterior draws (N, P).
        level: Probability of the interval for a single response.
        sigma: Noise level of the predictions, where the experiment sets it; the mean one of the trials if None.
        seed: Seed of the simulated responses; torch's global generator if None.
        ax: Axes to draw on and return; the current ones if None.

    Raises:
        ValueError: If `level` is no probability, or the history is not of this simulator, or empty.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from sbi_bed.simulators import OptimalActor, QuadraticCost
        >>> from sbi_bed.utils import pack_history
        >>> simulator, stimuli = BayesianActor(OptimalActor(QuadraticCost())), torch.tensor([[1.0], [2.0], [4.0]])
        >>> history = pack_history(stimuli, simulator(torch.tensor([0.15, 1.5, 0.1]), stimuli))
        >>> ax = plot_response_bands(simulator, history, simulator.prior.sample((100,)), ax=Figure().add_subplot())
        >>> ax.get_legend_handles_labels()[1][0]
        'predicted, 90% of responses'
    """
    check_fraction(level, "level")
    axes: Any = plt.gca() if ax is None else ax
    designs, outcomes, mask = split_history(
        check_history(history, simulator.design_dim, simulator.outcome_dim), simulator.design_dim
    )
    designs, outcomes = designs[mask == 1].cpu(), outcomes[mask == 1].cpu()
    if len(designs) == 0:
        raise ValueError("the history has no trials to draw.")
    stimuli = torch.linspace(float(designs[:, 0].min()), float(designs[:, 0].max()), 80).unsqueeze(-1)
    if simulator.noise_range is not None:
        noise = float(designs[:, 1].mean()) if sigma is None else sigma
        stimuli = torch.cat([stimuli, torch.full_like(stimuli, noise)], -1)
    with seeded(seed), torch.no_grad():
        responses = simulator(theta.float().unsqueeze(1), stimuli).squeeze(-1)
    tails = torch.tensor([(1 - level) / 2, 0.5, (1 + level) / 2])
    low, middle, high = responses.quantile(tails, dim=0)
    line = stimuli[:, 0]
    axes.fill_between(line, low, high, color=BLUE, alpha=0.2, lw=0, label=f"predicted, {level:.0%} of responses")
    axes.plot(line, middle, color=BLUE, label="predicted median")
    ends = [float(line[0]), float(line[-1])]
    axes.plot(ends, ends, color="0.6", ls=":", label="response = stimulus")
    axes.scatter(designs[:, 0], outcomes[:, 0], s=12, color=ORANGE, zorder=3, label="responses")
    axes.set(xlabel="stimulus", ylabel="response")
    axes.legend(fontsize=8, frameon=False)
    return axes


def plot_ridge(
    theta: Tensor,
    prior_draws: Tensor,
    names: Sequence[str],
    pair: tuple[str, str],
    *,
    truth: Tensor | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the posterior of two positive parameters on logarithmic axes, with the least-identified direction.

    Args:
        theta: Posterior draws (N, P).
        prior_draws: Prior draws (M, P), drawn in grey.
        names: Names of the P parameters.
        pair: Names of the two to draw, x and y.
        truth: Parameters (P,) to mark.
        ax: Axes to draw on and return; the current ones if None.

    Raises:
        ValueError: If a name is unknown, or one of the two parameters is not positive.

    Example:
        >>> from matplotlib.figure import Figure
        >>> prior = torch.rand(500, 2) + 0.5
        >>> theta = torch.stack([prior[:, 0], 1 / prior[:, 0]], -1)  # only a product is known
        >>> plot_ridge(theta, prior, ["sigma", "mu_0"], ("sigma", "mu_0"), ax=Figure().add_subplot()).get_title()
        'correlation of logarithms -1.00'
    """
    axes: Any = plt.gca() if ax is None else ax
    names = tuple(names)
    unknown = [name for name in pair if name not in names]
    if unknown:
        raise ValueError(f"there is no parameter {unknown[0]!r}, only {', '.join(names)}.")
    x, y = (names.index(name) for name in pair)
    both = torch.cat([theta[:, [x, y]], prior_draws[:, [x, y]].to(theta)])
    if not (both > 0).all():
        raise ValueError(f"{pair[0]} and {pair[1]} must be positive to be drawn on logarithmic axes.")
    report = identifiability(theta, prior_draws, names)
    axes.scatter(prior_draws[:1000, x], prior_draws[:1000, y], s=4, color="0.85", lw=0, label="prior")
    axes.scatter(theta[:, x][:2000], theta[:, y][:2000], s=4, color=BLUE, alpha=0.4, lw=0, label="posterior")
    centre = theta[:, [x, y]].log().mean(0)
    step = report.direction[[x, y]].to(centre)
    if step.norm() > 0:
        reach = 2 * theta[:, [x, y]].log().std(0).norm() / step.norm()
        ends = torch.exp(centre + reach * torch.tensor([[-1.0], [1.0]]).to(centre) * step)
        axes.plot(ends[:, 0], ends[:, 1], color=ORANGE, label="least-identified direction")
    if truth is not None:
        axes.plot(float(truth[x]), float(truth[y]), "k+", ms=10, mew=2, ls="", label="truth")
    axes.set(xscale="log", yscale="log", xlabel=pair[0], ylabel=pair[1])
    for limits, index in ((axes.set_xlim, x), (axes.set_ylim, y)):
        values = torch.cat([prior_draws[:, index].to(theta), theta[:, index]])
        low, high = float(values.min()), float(values.max())
        limits(low / math.pow(high / low, 0.05), high * math.pow(high / low, 0.05))
        axis = axes.xaxis if index == x else axes.yaxis
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else (1, 2, 3, 5, 7)))
        plain_ticks(axis)
    correlation = float(report.correlation[x, y])
    axes.set_title(f"correlation of logarithms {correlation:+.2f}", fontsize=10)
    legend = axes.legend(fontsize=8, loc="lower left", frameon=True, edgecolor="none", framealpha=0.8)
    for handle in legend.legend_handles[:2]:  # of the clouds
        handle.set_sizes([30])
    return axes
