"""Pictures of sensitivity: over powers of a prior, from each source, and disagreement of ensembles.

They take arrays and results of any method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Normalize
from scipy.stats import gaussian_kde
from torch import Tensor

from ..diagnostics.sensitivity.power_scaling import PowerScaling
from ..diagnostics.sensitivity.simulation_gap import SimulationGap
from ..utils.checks import as_finite_tensor
from .style import BLUE, GREY, ORANGE, PALETTE, names_of, plain_ticks

__all__ = [
    "plot_ensemble_disagreement",
    "plot_gamma_map",
    "plot_gamma_ridges",
    "plot_power_scaling",
    "plot_sources_of_sensitivity",
]

_MOST_POINTS = 300  # drawn beside the violin of a source


def plot_gamma_map(
    values: Any,
    gamma: Any,
    rows: Any,
    *,
    label: str = "distance to γ = 1",
    gamma_name: str = "γ",
    row_name: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw a measure of sensitivity over powers as a heat map.

    Args:
        values: Shape (R, G). If any is negative, colours diverge from zero.
        gamma: Powers of the columns, (G,), increasing.
        rows: Powers of a second component, (R,), increasing; or R names, of parameters say.
        label: Label of the colours.
        gamma_name: Name of the columns' power.
        row_name: Name of the rows.
        ax: Axes to draw on; the current ones if None.

    Returns:
        The axes; white or black lines mark γ = 1.

    Raises:
        ValueError: If shapes do not fit or a number is not finite.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> ax = plot_gamma_map(torch.rand(2, 3), [0.5, 1.0, 2.0], ["drift", "bound"], ax=Figure().add_subplot())
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['drift', 'bound']
    """
    table, powers = as_finite_tensor(values, "values").cpu(), as_finite_tensor(gamma, "gamma").cpu()
    if table.shape != (len(rows), len(powers)):
        raise ValueError(f"values must be ({len(rows)}, {len(powers)}), rows by gamma, got {tuple(table.shape)}.")
    axes: Any = plt.gca() if ax is None else ax
    diverging = bool((table < 0).any())
    norm = CenteredNorm() if diverging else Normalize(0, float(table.max()) or 1.0)
    named = isinstance(rows[0], str)
    settings = {"norm": norm, "origin": "upper" if named else "lower", "aspect": "auto"}
    image = axes.imshow(table, cmap="RdBu_r" if diverging else "viridis", **settings)
    style = {"color": "black" if diverging else "white", "linewidth": 1, "linestyle": "--"}
    _ticks_of_powers(axes.xaxis, powers)
    if float(powers[0]) < 1 and float(powers[-1]) > 1:
        axes.axvline(_place_of_one(powers), **style)
    if named:
        axes.set_yticks(range(len(rows)), rows)
    else:
        row_powers = as_finite_tensor(rows, "rows").cpu()
        _ticks_of_powers(axes.yaxis, row_powers)
        if float(row_powers[0]) < 1 and float(row_powers[-1]) > 1:
            axes.axhline(_place_of_one(row_powers), **style)
    axes.set(xlabel=gamma_name, ylabel=row_name)
    axes.figure.colorbar(image, ax=axes, label=label)
    return axes


def plot_gamma_ridges(
    draws: Sequence[Any] | Tensor, gamma: Any, *, name: str = "θ", overlap: float = 1.6, ax: Axes | None = None
) -> Axes:
    """Draw the posterior of one parameter at each power, one above the other; γ = 1 is orange.

    Args:
        draws: Posterior draws (S,) at each power, (G, S) or a list.
        gamma: Powers, (G,), increasing.
        name: The parameter's name.
        overlap: Height of the highest density, in rows.
        ax: Axes to draw on and return; the current ones if None.

    Raises:
        ValueError: If the numbers of powers and of sets of draws differ, or a number is not finite.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> draws = [torch.randn(500) + shift for shift in (-0.3, 0.0, 0.2)]
        >>> plot_gamma_ridges(draws, [0.5, 1.0, 2.0], name="drift", ax=Figure().add_subplot()).get_xlabel()
        'drift'
    """
    powers = as_finite_tensor(gamma, "gamma").tolist()
    clouds = [as_finite_tensor(part, "draws").detach().double().cpu().numpy().reshape(-1) for part in draws]
    if len(clouds) != len(powers):
        raise ValueError(f"there must be draws for each of {len(powers)} powers, got {len(clouds)}.")
    axes: Any = plt.gca() if ax is None else ax
    pooled = np.concatenate(clouds)
    low, high = np.quantile(pooled, [0.001, 0.999])
    grid = np.linspace(low - 0.08 * (high - low), high + 0.08 * (high - low), 400)
    densities = [gaussian_kde(cloud)(grid) for cloud in clouds]
    scale = overlap / max(density.max() for density in densities)
    baseline = int(np.argmin(np.abs(np.log(powers))))
    for row in reversed(range(len(powers))):
        colour = ORANGE if row == baseline else BLUE
        top = row + scale * densities[row]
        axes.fill_between(grid, row, top, color=colour, alpha=0.75, linewidth=0, zorder=2 * (len(powers) - row))
        axes.plot(grid, top, color="white", linewidth=1, zorder=2 * (len(powers) - row) + 1)
        axes.plot([clouds[row].mean()] * 2, [row, row + 0.25], color="black", linewidth=1, zorder=100)
    axes.set_yticks(range(len(powers)), [f"{power:.2g}" for power in powers])
    axes.set(xlabel=name, ylabel="γ", xlim=(grid[0], grid[-1]), ylim=(-0.15, len(powers) - 1 + overlap + 0.15))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return axes


def plot_sources_of_sensitivity(
    sources: Mapping[str, Any],
    *,
    names: Sequence[str] | None = None,
    label: str = "shift of the posterior mean, posterior sd",
    ax: Axes | None = None,
) -> Axes:
    """Draw how far each source moves each conclusion, on one scale.

    Args:
        sources: Source ("prior", "likelihood", "data", "approximator") → its shifts (R, K): R variants (powers, simulators,
            bootstraps, members), K conclusions (parameters or models), all in one unit.
        names: K names; θ₀, … if None.
        label: Label of the shifts.
        ax: Axes to draw on; the current ones if None.

    Returns:
        The axes. Dots are variants, bars span their 5 % to 95 % quantiles, violins show all.

    Raises:
        ValueError: If there is no source, the numbers of conclusions or names differ, or a number is not finite.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> sources = {"prior": torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), "data": 0.1 * torch.randn(50, 2)}
        >>> ax = plot_sources_of_sensitivity(sources, names=["drift", "bound"], ax=Figure().add_subplot())
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['prior', 'data']
    """
    tables = {source: as_finite_tensor(shift, source).detach().double().cpu() for source, shift in sources.items()}
    tables = {source: shift.unsqueeze(-1) if shift.ndim == 1 else shift for source, shift in tables.items()}
    widths = {shift.shape[-1] for shift in tables.values() if shift.ndim == 2}
    if len(widths) != 1 or any(shift.ndim != 2 for shift in tables.values()):
        shapes = {source: tuple(shift.shape) for source, shift in tables.items()}
        raise ValueError(f"sources must be shifts (R, K) of the same K conclusions, got {shapes}.")
    num = widths.pop()
    names = names_of(names, _symbols(num), "conclusion")
    axes: Any = plt.gca() if ax is None else ax
    thickness = 0.8 / num
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    for place, shift in enumerate(tables.values()):
        if place % 2:
            axes.axvspan(place - 0.5, place + 0.5, color="0.96", linewidth=0, zorder=-1)
        for k in range(num):
            centre = place + (k - (num - 1) / 2) * thickness
            _draw_violin(axes, shift[:, k].numpy(), centre, thickness, PALETTE[k % len(PALETTE)])
    for k, name in enumerate(names):
        axes.plot([], [], "s", color=PALETTE[k % len(PALETTE)], label=name)
    axes.set_xticks(range(len(tables)), list(tables))
    axes.tick_params(axis="x", length=0)
    axes.set(ylabel=label, xlim=(-0.5, len(tables) - 0.5))
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=num, frameon=False, borderaxespad=0.2)
    return axes


def plot_ensemble_disagreement(
    gap: SimulationGap, *, names: Sequence[str] | None = None, level: float = 0.05, ax: Axes | None = None
) -> Axes:
    """Draw the disagreement of members on observed data sets, against that on simulated ones.

    Args:
        gap: Result of `simulation_gap`.
        names: Names of the B data sets; "0", "1", … if None.
        level: Data sets with a smaller p-value (by both scores together) are orange.
        ax: Axes to draw on and return; the current ones if None.

    Raises:
        ValueError: If the number of names is not that of data sets.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from sbi_bed.diagnostics import SimulationGap
        >>> p_value, disagreement = torch.tensor([0.4, 0.001]), torch.tensor([0.5, 30.0])
        >>> gap = SimulationGap(
        ...     p_value, disagreement, torch.rand(500), p_value, p_value
        ... )  # as `simulation_gap` gives it
        >>> ax = plot_ensemble_disagreement(gap, names=["Ann", "Bob"], ax=Figure().add_subplot())
        >>> [text.get_text() for text in ax.texts]
        ['Ann, p = 0.4', 'Bob, p = 0.001']
    """
    num = len(gap.p_value)
    names = names_of(names, [str(b) for b in range(num)], "data set")
    axes: Any = plt.gca() if ax is None else ax
    null, found = gap.reference_disagreement.numpy(), gap.disagreement.numpy()
    smallest = max(float(null[null > 0].min(initial=np.inf)), 1e-12) if (null > 0).any() else 1e-12
    low, high = min(smallest, *found[found > 0], np.inf), max(null.max(), found.max(), 10 * smallest)
    edges = np.geomspace(low, high * 1.1, 50)
    axes.hist(null.clip(edges[0]), edges, color="0.8", label=f"{len(null)} simulated data sets")
    axes.axvline(np.quantile(null, 0.95), color=GREY, linewidth=1, linestyle="--", label="their 95 % quantile")
    top = axes.get_ylim()[1]
    for place, b in enumerate(np.argsort(found)):
        colour = ORANGE if gap.p_value[b] < level else BLUE
        height = top * (0.95 - 0.75 * (place % 8) / 8)
        axes.plot([found[b]] * 2, [0, height], color=colour, linewidth=1.2)
        axes.plot(found[b], height, "o", color=colour, markersize=4)
        text = f"{names[b]}, p = {float(gap.p_value[b]):.2g}"
        right = np.log(found[b] / low) > 0.7 * np.log(high / low)
        offset = (-5, 0) if right else (5, 0)
        axes.annotate(
            text,
            (found[b], height),
            xytext=offset,
            textcoords="offset points",
            fontsize=8,
            color=colour,
            va="center",
            ha="right" if right else "left",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        )
    axes.set_xscale("log")
    axes.set(xlabel="disagreement of members", ylabel="simulated data sets", ylim=(0, top))
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.2)
    return axes


def plot_power_scaling(
    found: PowerScaling,
    *,
    exact_mean: Any = None,
    exact_sd: Any = None,
    others: Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
    axes: Sequence[Axes] | None = None,
) -> Any:
    """Draw posterior means over powers by importance weights, beside better answers, and their k̂.

    Args:
        found: Result of `power_scaling_by_importance`, over increasing powers. Lines are dotted where k̂ is too large.
        exact_mean: Exact means, (G, P).
        exact_sd: Exact standard deviations, (G, P): a grey band of ± one.
        others: Name → means (G, P) by another method, such as a context network.
        names: P names; θ₀, … if None.
        axes: P + 1 axes, the last for k̂; a new figure if None.

    Returns:
        An array of the axes.

    Raises:
        ValueError: If shapes do not fit, or a number is not finite.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from sbi_bed.diagnostics import PowerScaling
        >>> gamma, mean, sd = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([[0.2], [0.0], [-0.1]]), torch.ones(3, 1)
        >>> found = PowerScaling(gamma, mean, sd, torch.full((3,), 0.1), 100 * gamma, mean[1], sd[1], num_samples=100)
        >>> axes = Figure().subplots(2, 1)
        >>> len(plot_power_scaling(found, exact_mean=mean, axes=axes))  # as `power_scaling_by_importance` gives it
        2
    """
    gamma, num = found.gamma.numpy(), found.mean.shape[-1]
    tables = {"exact_mean": exact_mean, "exact_sd": exact_sd, **(others or {})}
    checked = {key: as_finite_tensor(v, key).detach().double().cpu() for key, v in tables.items() if v is not None}
    for key, table in checked.items():
        if table.shape != found.mean.shape:
            raise ValueError(f"{key} must have shape {tuple(found.mean.shape)}, got {tuple(table.shape)}.")
    names = names_of(names, _symbols(num), "parameter")
    if axes is None:
        _, made = plt.subplots(1, num + 1, figsize=(3.1 * (num + 1), 2.9), layout="constrained")
        axes = list(made)
    if len(axes) != num + 1:
        raise ValueError(f"there must be {num + 1} axes, one for each parameter and one for k̂, got {len(axes)}.")
    drawn: Any = np.asarray(axes, dtype=object)
    reliable = found.reliable.numpy()
    for j in range(num):
        _draw_means(drawn[j], gamma, found.mean[:, j].numpy(), reliable, {k: v[:, j] for k, v in checked.items()})
        drawn[j].set(ylabel=f"posterior mean of {names[j]}")
    drawn[0].legend(fontsize=8)
    _draw_pareto_k(drawn[-1], found)
    for axis in drawn:
        axis.set(xlabel="γ", xscale="log")
        axis.set_xticks(_round_powers(gamma))
        plain_ticks(axis.xaxis)
    return drawn


# ---- parts of pictures


def _symbols(num: int) -> list[str]:
    return [rf"$\theta_{{{j}}}$" for j in range(num)]


def _draw_means(axes: Any, gamma: Any, mean: Any, reliable: Any, others: dict[str, Tensor]) -> None:
    exact, sd = others.pop("exact_mean", None), others.pop("exact_sd", None)
    if exact is not None and sd is not None:
        axes.fill_between(gamma, exact - sd, exact + sd, color="0.92", linewidth=0, label="exact ± sd")
    if exact is not None:
        axes.plot(gamma, exact, color="black", linewidth=2.5, alpha=0.5, label="exact")
    for colour, (name, values) in zip(PALETTE[2:], others.items(), strict=False):
        axes.plot(gamma, values, color=colour, linewidth=1.3, label=name)
    axes.plot(gamma, mean, color=ORANGE, linewidth=1.2, linestyle=":")
    axes.plot(gamma, np.where(reliable, mean, np.nan), color=ORANGE, linewidth=1.6, label="importance weights")


def _draw_pareto_k(axes: Any, found: PowerScaling) -> None:
    """k̂ over powers, with the largest reliable k̂."""
    gamma = found.gamma.numpy()
    shape = found.pareto_k.numpy()
    shape = np.where(np.isfinite(shape), shape, np.nan)
    axes.axhline(found.largest_pareto_k, color=GREY, linewidth=1, linestyle="--")
    axes.annotate(
        "not reliable above",
        (1, found.largest_pareto_k),
        xycoords=("axes fraction", "data"),
        xytext=(-3, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color="0.3",
    )
    axes.plot(gamma, shape, color=ORANGE, linewidth=1)
    axes.scatter(gamma, shape, s=14, color=np.where(found.reliable.numpy(), BLUE, ORANGE), zorder=3)
    axes.set(ylabel="k̂ of the importance weights")


def _draw_violin(axes: Any, values: np.ndarray, centre: float, thickness: float, colour: str) -> None:
    if len(values) >= 10 and np.ptp(values) > 0:
        body = axes.violinplot(values, [centre], widths=0.9 * thickness, showextrema=False)["bodies"][0]
        body.set(facecolor=colour, alpha=0.35, linewidth=0)
    low, high = np.quantile(values, [0.05, 0.95])
    axes.plot([centre, centre], [low, high], color=colour, linewidth=2, solid_capstyle="butt")
    shown = values[:: -(-len(values) // _MOST_POINTS)]
    spread = 0.2 * thickness * np.sin(2.4 * np.arange(len(shown)))  # apart, and the same each time
    axes.scatter(centre + spread, shown, s=5, color=colour, alpha=0.6, linewidths=0, zorder=3, rasterized=True)


def _round_powers(powers: Any) -> list[float]:
    """1, 2, 5 times powers of ten within the range."""
    low, high = float(min(powers)), float(max(powers))
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5)]
    inside = [value for value in every if low * 0.999 <= value <= high * 1.001]
    return inside or [low, high]


def _place_of_one(powers: Tensor) -> float:
    return float(np.interp(0.0, powers.double().log(), np.arange(len(powers))))


def _ticks_of_powers(axis: Any, powers: Tensor) -> None:
    """Ticks at round powers of an image whose columns are at their indices."""
    rounded = _round_powers(powers.tolist())
    places = np.interp(np.log(rounded), powers.double().log(), np.arange(len(powers)))
    axis.set_ticks(places, [f"{value:g}" for value in rounded])
