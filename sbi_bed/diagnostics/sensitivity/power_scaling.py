r"""Sensitivity to powers of the prior or the likelihood by importance weights, without training or sampling again.

With a component c(θ), p(θ) or p(x | θ), raised to the power γ, draws of the posterior at γ = 1 have importance weights

    w(θ) ∝ c(θ)^{γ − 1},

The largest weights are smoothed, and their Pareto k̂ says whether the weights are reliable (`pareto_smoothing.py`;
Kallioinen et al. 2024, Statistics and Computing 34:57). The input is draws and log c up to a constant; for a neural
posterior q, log p(x | θ) = log q(θ | x) − log p(θ) + const.

The method works close to γ = 1. It fails if the posterior at γ reaches beyond the draws, most often for small γ and a prior
that is narrower than the likelihood; k̂ shows this. A net with γ as its context (`ContextNPE`) has no such limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...utils.checks import as_finite_tensor
from ...utils.text_table import format_table
from .pareto_smoothing import largest_pareto_k, smoothed_weights

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PowerScaling", "power_scaling_by_importance"]


@dataclass(frozen=True)
class PowerScaling:
    """Moments of a posterior over powers γ of one component.

    Attributes:
        gamma: Powers, (G,).
        mean: Posterior means at each, (G, P).
        sd: Posterior standard deviations at each, (G, P).
        pareto_k: k̂ of the weights at each power, (G,); −∞ if all weights are equal.
        effective_sample_size: 1 / Σ w² of each, (G,).
        baseline_mean: Means of the draws, (P,).
        baseline_sd: Standard deviations of the draws, (P,).
        num_samples: Number S of draws.
    """

    gamma: Tensor
    mean: Tensor
    sd: Tensor
    pareto_k: Tensor
    effective_sample_size: Tensor
    baseline_mean: Tensor
    baseline_sd: Tensor
    num_samples: int

    @property
    def largest_pareto_k(self) -> float:
        """min(1 − 1/log₁₀ S, 0.7)."""
        return largest_pareto_k(self.num_samples)

    @property
    def reliable(self) -> Tensor:
        """Whether moments are reliable at each power, (G,), bool."""
        return self.pareto_k < self.largest_pareto_k

    def __str__(self) -> str:
        header = ["γ", "k̂", "effective sample size", *(f"mean {j} (sd)" for j in range(self.mean.shape[1]))]
        rows = []
        for g, power in enumerate(self.gamma.tolist()):
            moments = zip(self.mean[g].tolist(), self.sd[g].tolist(), strict=True)
            mark = "" if bool(self.reliable[g]) else " !"
            size = float(self.effective_sample_size[g])
            rows.append([f"{power:g}", f"{float(self.pareto_k[g]):.2f}{mark}", f"{size:.0f}"])
            rows[-1] += [f"{mean:.3g} ({sd:.3g})" for mean, sd in moments]
        return f"{format_table(header, rows)}\n! not reliable: k̂ is above {self.largest_pareto_k:.2f}"

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each power and parameter."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "gamma": power,
                    "parameter": j,
                    "mean": float(self.mean[g, j]),
                    "sd": float(self.sd[g, j]),
                    "shift": float(self.shift[g, j]),
                    "pareto_k": float(self.pareto_k[g]),
                    "reliable": bool(self.reliable[g]),
                }
                for g, power in enumerate(self.gamma.tolist())
                for j in range(self.mean.shape[1])
            ]
        )

    @property
    def shift(self) -> Tensor:
        """Means at γ minus the mean of the draws, in standard deviations of the draws, (G, P)."""
        return (self.mean - self.baseline_mean) / self.baseline_sd


def power_scaling_by_importance(theta: Any, log_component: Any, gamma: Any) -> PowerScaling:
    """Moments of the posterior with one component raised to powers, by Pareto-smoothed importance weights.

    Args:
        theta: Draws of the posterior at γ = 1, (S, P), S ≥ 25.
        log_component: log p(θ), or log p(x | θ) up to a constant, of each draw, (S,), nats; or the log prior of one
            parameter alone.
        gamma: Powers, positive, (G,).

    Raises:
        ValueError: If shapes do not fit, a number is not finite, or a power not positive.

    Example:
        >>> theta = 0.5**0.5 * torch.randn(
        ...     4000, 1
        ... )  # of the posterior given x = 0 ~ N(θ, 1), with θ ~ N(0, 1/γ) and γ = 1
        >>> gamma = torch.tensor([0.8, 1.0, 1.25])
        >>> log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(theta).squeeze(-1)
        >>> found = power_scaling_by_importance(theta, log_prior, gamma)
        >>> found.reliable
        tensor([True, True, True])
        >>> bool(((found.sd[:, 0] - (1 + gamma) ** -0.5).abs() < 0.05).all())  # the exact ones
        True
    """
    theta, log_component, gamma = (
        as_finite_tensor(value, name).detach().double().cpu()
        for value, name in ((theta, "theta"), (log_component, "log_component"), (gamma, "gamma"))
    )
    if theta.ndim != 2 or log_component.shape != theta.shape[:1] or len(theta) < 25:
        raise ValueError(
            "theta (S, P) and log_component (S,) must be at least 25 draws, got "
            f"{tuple(theta.shape)} and {tuple(log_component.shape)}."
        )
    if gamma.ndim != 1 or not bool((gamma > 0).all()):
        raise ValueError(f"gamma must be positive powers (G,), got {gamma.tolist()}.")
    rows, shapes = [], []
    for power in gamma.tolist():
        log_weights = (power - 1) * (log_component - log_component.mean())
        weights_of_power, shape = smoothed_weights(log_weights)
        rows.append(weights_of_power)
        shapes.append(shape)
    weights = torch.stack(rows)
    mean = weights @ theta
    baseline, gaps = theta.mean(0), theta - theta.mean(0)
    variance = weights @ gaps.square() - (mean - baseline).square()
    return PowerScaling(
        gamma,
        mean,
        variance.clamp_min(0).sqrt(),
        torch.tensor(shapes, dtype=torch.float64),
        1 / weights.square().sum(-1),
        baseline,
        theta.std(0),
        len(theta),
    )
