r"""How close Bayes factors and model probabilities come to exact ones, where exact ones exist.

With e_n = log BF(found) − log BF(exact) for data set n, over ranges of |log BF(exact)|,

    bias = mean e_n,    RMSE = (mean e_n²)^{1/2},    stderr(RMSE) ≈ sd(e_n²) / (2 RMSE √n),

and for exact probabilities p and found ones q

    KL(p_n ‖ q_n) = Σ_j p_nj (log p_nj − log q_nj),    error = J^{-1} Σ_j |p_nj − q_nj|.

KL is the log score lost; it hardly sees Bayes factors beyond 9 nats, where all probabilities are near 0 or 1. The ranges do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...inference.posteriors.model_probabilities import losing_models
from ...utils.checks import as_finite_tensor
from ...utils.text_table import format_table
from .calibration import as_log_probs, mean_and_stderr

__all__ = ["EvidenceRecovery", "ProbabilityRecovery", "evidence_recovery", "kl_to_exact", "probability_recovery"]


@dataclass(frozen=True)
class EvidenceRecovery:
    """Errors of log Bayes factors, nats, by ranges of the exact |log BF|; NaN where a range has too few data sets.

    Attributes:
        edges: Edges of the R ranges, (R + 1,), nats; a range holds its lower edge.
        count: Data sets in each, (R,).
        rmse: Root mean squared error, (R,).
        rmse_stderr: Its standard error, (R,).
        bias: Mean error, found − exact, (R,).
        bias_stderr: Its standard error, (R,).
        losing: The same numbers (count, RMSE, its standard error, bias, its standard error) over data sets for which both
            models have less than 0.001 of the probability; None where that was not asked.
    """

    edges: tuple[float, ...]
    count: Tensor
    rmse: Tensor
    rmse_stderr: Tensor
    bias: Tensor
    bias_stderr: Tensor
    losing: tuple[float, ...] | None = None

    def __str__(self) -> str:
        rows = [
            (f"{low:g} to {high:g}", str(int(count)), f"{rmse:.3f} ± {rmse_se:.3f}", f"{bias:+.3f} ± {bias_se:.3f}")
            if count
            else (f"{low:g} to {high:g}", "0", "", "")
            for (low, high), count, rmse, rmse_se, bias, bias_se in zip(
                itertools.pairwise(self.edges),
                *(column.tolist() for column in (self.count, self.rmse, self.rmse_stderr, self.bias, self.bias_stderr)),
                strict=True,
            )
        ]
        if self.losing is not None:
            count, rmse, rmse_se, bias, bias_se = self.losing
            errors = f"{rmse:.3f} ± {rmse_se:.3f}" if count else ""
            rows.append(
                ("both models p < 0.001", f"{count:g}", errors, f"{bias:+.3f} ± {bias_se:.3f}" if count else "")
            )
        return format_table(("|log BF|, exact", "data sets", "RMSE, nats", "bias, nats"), rows)


@dataclass(frozen=True)
class ProbabilityRecovery:
    """Distance of model probabilities from exact ones, each with its standard error.

    Attributes:
        kl: Mean KL divergence from the exact to the found ones, nats.
        kl_stderr: Its standard error.
        error: Mean absolute error, over data sets and models.
        error_stderr: Its standard error.
        kl_each: KL divergence of each data set, (N,).
    """

    kl: float
    kl_stderr: float
    error: float
    error_stderr: float
    kl_each: Tensor

    def __str__(self) -> str:
        return (
            f"KL {self.kl:.5f} ± {self.kl_stderr:.5f} nats, absolute error of probabilities {self.error:.4f} ± "
            f"{self.error_stderr:.4f} ({len(self.kl_each)} data sets)"
        )


def evidence_recovery(
    log_bayes_factor_found: Any,
    log_bayes_factor_exact: Any,
    edges: Sequence[float] = (0, 9, 40, math.inf),
    *,
    largest_log_prob: Any = None,
) -> EvidenceRecovery:
    """Compare log Bayes factors with exact ones, small and large.

    A Bayes factor between two models that both lose to a third is beyond what a classifier learns, even if it is small:
    `largest_log_prob` sets these apart from the ranges.

    Args:
        log_bayes_factor_found: Shape (N,), nats.
        log_bayes_factor_exact: Shape (N,), nats, of the same data sets and models.
        edges: Edges of the ranges of |exact|, (R + 1,), increasing; a range holds its lower edge.
        largest_log_prob: Log probability of the more probable one of the two models, (N,), such as
            ``posterior.log_probs(x)[:, [i, j]].amax(-1)``; None if there are only two models.

    Raises:
        ValueError: If shapes differ, there is no data set, a number is not finite, or edges do not increase.

    Example:
        >>> recovery = evidence_recovery([1.0, -2.0, 15.0], [1.5, -2.5, 10.0])
        >>> recovery.count.tolist(), recovery.rmse[:2].tolist(), recovery.bias[:2].tolist()
        ([2, 1, 0], [0.5, 5.0], [0.0, 5.0])
    """
    found = as_finite_tensor(log_bayes_factor_found, "log_bayes_factor_found").detach().double().cpu()
    exact = as_finite_tensor(log_bayes_factor_exact, "log_bayes_factor_exact").detach().double().cpu()
    if found.ndim != 1 or found.shape != exact.shape or len(found) == 0:
        raise ValueError(
            "log_bayes_factor_found and log_bayes_factor_exact must have one shape (N,), N > 0, "
            f"got {tuple(found.shape)} and {tuple(exact.shape)}."
        )
    limits = tuple(float(edge) for edge in edges)
    if len(limits) < 2 or not all(low < high for low, high in itertools.pairwise(limits)):
        raise ValueError(f"edges must be at least two increasing numbers, got {limits}.")
    lost = torch.zeros(len(exact), dtype=torch.bool)
    if largest_log_prob is not None:
        lost = losing_models(torch.as_tensor(largest_log_prob).double().cpu())
        if lost.shape != exact.shape:
            raise ValueError(f"largest_log_prob must have shape ({len(exact)},), got {tuple(lost.shape)}.")
    size, error = exact.abs(), found - exact
    rows = [_errors(error[(size >= low) & (size < high) & ~lost]) for low, high in itertools.pairwise(limits)]
    count, *columns = torch.tensor(rows, dtype=torch.float64).T
    return EvidenceRecovery(
        limits, count.long(), *columns, losing=None if largest_log_prob is None else _errors(error[lost])
    )


def _errors(error: Tensor) -> tuple[float, ...]:
    """Number of errors, root mean square, its standard error, mean, its standard error."""
    mean_square, square_stderr = mean_and_stderr(error.square())
    rmse = math.sqrt(mean_square)
    rmse_stderr = square_stderr / (2 * rmse) if rmse > 0 else square_stderr
    return float(len(error)), rmse, rmse_stderr, *mean_and_stderr(error)


def kl_to_exact(exact_log_probs: Any, log_probs: Any) -> Tensor:
    """KL(exact ‖ found) of each data set, (N,), nats, float64.

    Args:
        exact_log_probs: Exact log p(M_j | x_n), (N, J).
        log_probs: The same as found, (N, J).

    Raises:
        ValueError: If shapes differ, a number is not finite, or probabilities do not sum to one.

    Example:
        >>> kl_to_exact(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
        tensor([0.1438], dtype=torch.float64)
    """
    exact, found = _both(exact_log_probs, log_probs)
    return (exact.exp() * (exact - found)).sum(-1)


def probability_recovery(exact_log_probs: Any, log_probs: Any) -> ProbabilityRecovery:
    """Compare model probabilities with exact ones; arguments and errors as for `kl_to_exact`.

    Example:
        >>> recovery = probability_recovery(
        ...     torch.tensor([[0.5, 0.5]] * 2).log(), torch.tensor([[0.25, 0.75]] * 2).log()
        ... )
        >>> f"{recovery.error:.2f}"
        '0.25'
    """
    exact, found = _both(exact_log_probs, log_probs)
    kl_each = kl_to_exact(exact, found)
    errors = (exact.exp() - found.exp()).abs().mean(-1)
    return ProbabilityRecovery(*mean_and_stderr(kl_each), *mean_and_stderr(errors), kl_each)


def _both(exact_log_probs: Any, log_probs: Any) -> tuple[Tensor, Tensor]:
    exact, found = as_log_probs(exact_log_probs, "exact_log_probs"), as_log_probs(log_probs, "log_probs")
    if exact.shape != found.shape:
        raise ValueError(
            f"exact_log_probs and log_probs must have one shape, got {tuple(exact.shape)} and {tuple(found.shape)}."
        )
    return exact, found
