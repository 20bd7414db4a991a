r"""Are model probabilities what they say? Calibration, scores and confusion on data sets whose model is known.

For probabilities p_nj = p(M_j | x_n), true models m_n, y_nj = 1 where j = m_n and 0 elsewhere, and bins B_1, …, B_K of equal
width on [0, 1],

    ECE = J^{-1} Σ_j Σ_k |Σ_{n: p_nj ∈ B_k} (y_nj − p_nj)| / N,
    Brier score = N^{-1} Σ_n Σ_j (p_nj − y_nj)²,    log score = −N^{-1} Σ_n log p(M_{m_n} | x_n).

The expected calibration error (ECE; Naeini et al. 2015; by model: Kull et al. 2019, arXiv 1910.12656) is a mean of absolute
values, so it is above zero for exact probabilities, too. Its **floor** is what N data sets would show if the probabilities
were exact: labels m_n ~ p(M | x_n) are drawn anew many times while the probabilities stay (Bröcker & Smith 2007). An ECE
within the floor says that nothing was found, not that a method is better than another within it; compare log scores there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from ...simulators.models.model_family import as_model_index
from ...utils.checks import as_finite_tensor, check_count
from ...utils.seeding import seeded

__all__ = ["ModelCalibration", "ReliabilityBins", "as_log_probs", "mean_and_stderr", "model_calibration"]

_CELLS_AT_A_TIME = 2**22  # replicated labels in memory at once
_NORMALISED = 1e-4  # how far from 1 probabilities may sum: float32 nets round


@dataclass(frozen=True)
class ReliabilityBins:
    """Probabilities of each of J models in K bins, against how often the model was true; NaN where a bin is empty.

    Attributes:
        count: Data sets in each bin, (J, K).
        mean_prob: Their mean probability, (J, K).
        frequency: Share of them for which the model is true, (J, K).
        interval: Its exact binomial interval (Clopper-Pearson) of 95 %, (J, K, 2).
        expected: Range that 95 % of frequencies would lie in if the probabilities were exact, (J, K, 2).
    """

    count: Tensor
    mean_prob: Tensor
    frequency: Tensor
    interval: Tensor
    expected: Tensor


@dataclass(frozen=True)
class ModelCalibration:
    """How model probabilities do on N data sets whose model is known; each number with its standard error.

    Attributes:
        ece: Expected calibration error, the mean over models.
        ece_stderr: Its standard error, for an ECE well above the floor.
        ece_floor: Mean ECE of exact probabilities on so many data sets.
        ece_floor_upper: 95 % quantile of the same.
        ece_p_value: Probability that exact probabilities have an ECE of at least this one.
        brier: Brier score, 0 to 2.
        brier_stderr: Its standard error.
        log_score: Mean −log probability of the true model, nats.
        log_score_stderr: Its standard error.
        accuracy: Share of data sets whose most probable model is the true one.
        accuracy_stderr: Its standard error.
        confusion: Mean probability given to model j where i is true, (J, J); a row is NaN where no data set is of model i.
        confusion_count: Data sets of model i whose most probable model is j, (J, J).
        bins: Reliability by model and bin.
    """

    ece: float
    ece_stderr: float
    ece_floor: float
    ece_floor_upper: float
    ece_p_value: float
    brier: float
    brier_stderr: float
    log_score: float
    log_score_stderr: float
    accuracy: float
    accuracy_stderr: float
    confusion: Tensor
    confusion_count: Tensor
    bins: ReliabilityBins

    def __str__(self) -> str:
        return (
            f"calibration error {self.ece:.4f} ± {self.ece_stderr:.4f} (exact probabilities: {self.ece_floor:.4f}, up to "
            f"{self.ece_floor_upper:.4f}; p = {self.ece_p_value:.3f}), log score {self.log_score:.4f} ± "
            f"{self.log_score_stderr:.4f}, Brier score {self.brier:.4f} ± {self.brier_stderr:.4f}, accuracy "
            f"{self.accuracy:.1%} ± {self.accuracy_stderr:.1%} ({int(self.confusion_count.sum())} data sets)"
        )


def model_calibration(
    log_probs: Any, model_index: Any, num_bins: int = 15, *, num_replicates: int = 1000, seed: int | None = None
) -> ModelCalibration:
    """Judge model probabilities by data sets whose model is known.

    Args:
        log_probs: log p(M_j | x_n), (N, J), such as `posterior.log_probs(x)` of simulations that were not trained on.
        model_index: Their models m_n, (N,), drawn from the prior over models that the probabilities assume.
        num_bins: Bins K of equal width.
        num_replicates: Replications behind the floor and the expected range.
        seed: Seed; the global generator if None.

    Raises:
        TypeError: If an argument is not made of numbers.
        ValueError: If shapes differ, there are fewer than two data sets or models, a number is not finite, probabilities do
            not sum to one, or an index is of no model.

    Example:
        >>> probs = torch.rand(4000, 1, dtype=torch.float64)
        >>> log_probs = torch.cat([1 - probs, probs], -1).log()
        >>> model_index = torch.bernoulli(probs.squeeze(-1)).long()
        >>> calibration = model_calibration(log_probs, model_index, seed=0)
        >>> calibration.ece < 2 * calibration.ece_floor_upper
        True
    """
    log_probs = as_log_probs(log_probs, "log_probs")
    num, num_models = log_probs.shape
    if num < 2:
        raise ValueError(f"log_probs must be of at least 2 data sets, got {num}.")
    model_index = as_model_index(model_index, num, num_models)
    num_bins = check_count(num_bins, "num_bins")
    num_replicates = check_count(num_replicates, "num_replicates", 20)
    with seeded(seed):
        return _run(log_probs, model_index, num_bins, num_replicates)


def _run(log_probs: Tensor, model_index: Tensor, num_bins: int, num_replicates: int) -> ModelCalibration:
    probs = log_probs.exp()
    num, num_models = probs.shape
    truth = torch.nn.functional.one_hot(model_index, num_models).to(probs)
    cell = (probs * num_bins).long().clamp_max(num_bins - 1) + num_bins * torch.arange(num_models)
    num_cells = num_models * num_bins

    count = torch.bincount(cell.flatten(), minlength=num_cells).double()
    mass = torch.bincount(cell.flatten(), weights=probs.flatten(), minlength=num_cells)
    hits = torch.bincount(cell.flatten(), weights=truth.flatten(), minlength=num_cells)
    replicates = _replicated_hits(probs, cell, num_cells, num_replicates).double()

    ece, floor = ((hits_ - mass).abs().sum(-1) / (num * num_models) for hits_ in (hits, replicates))
    contribution = ((truth - probs) * (hits - mass).sign()[cell]).mean(-1)
    expected = torch.quantile(replicates, torch.tensor([0.025, 0.975]).double(), dim=0) / count
    bins = ReliabilityBins(
        count.long().view(num_models, num_bins),
        (mass / count).view(num_models, num_bins),
        (hits / count).view(num_models, num_bins),
        _binomial_interval(hits, count).view(num_models, num_bins, 2),
        expected.T.reshape(num_models, num_bins, 2),
    )
    best = log_probs.argmax(-1)
    pairs = torch.bincount(model_index * num_models + best, minlength=num_models**2)
    return ModelCalibration(
        float(ece),
        mean_and_stderr(contribution)[1],
        float(floor.mean()),
        float(floor.quantile(0.95)),
        float(1 + (floor >= ece).sum()) / (1 + num_replicates),
        *mean_and_stderr((probs - truth).square().sum(-1)),
        *mean_and_stderr(-log_probs.gather(-1, model_index.unsqueeze(-1))),
        *mean_and_stderr((best == model_index).double()),
        truth.T @ probs / truth.sum(0).unsqueeze(-1),
        pairs.view(num_models, num_models),
        bins,
    )


def _replicated_hits(probs: Tensor, cell: Tensor, num_cells: int, num_replicates: int) -> Tensor:
    """How often labels drawn from the probabilities (N, J) fall in each cell (model, bin): (num_replicates, cells)."""
    parts = []
    size = max(1, _CELLS_AT_A_TIME // len(probs))
    for start in range(0, num_replicates, size):
        num = min(size, num_replicates - start)
        labels = torch.multinomial(probs, num, replacement=True)
        places = cell.gather(-1, labels) + num_cells * torch.arange(num)
        parts.append(torch.bincount(places.flatten(), minlength=num * num_cells).view(num, num_cells))
    return torch.cat(parts)


def _binomial_interval(hits: Tensor, count: Tensor) -> Tensor:
    """Clopper-Pearson intervals of 95 %, (..., 2), for hits out of count; NaN out of none."""
    k, n = hits.round().numpy(), count.numpy()
    low = np.where(k > 0, betaincinv(np.maximum(k, 1), n - k + 1, 0.025), 0.0)
    high = np.where(k < n, betaincinv(k + 1, np.maximum(n - k, 1), 0.975), 1.0)
    interval = torch.from_numpy(np.stack([low, high], -1))
    return interval.masked_fill((count == 0).unsqueeze(-1), torch.nan)


def mean_and_stderr(values: Tensor) -> tuple[float, float]:
    """Mean of independent values and its standard error; NaN for what too few values cannot tell."""
    num = values.numel()
    mean = float(values.mean()) if num else float("nan")
    return mean, float(values.std()) / num**0.5 if num > 1 else float("nan")


def as_log_probs(log_probs: Any, name: str) -> Tensor:
    """Log probabilities of models (N, J) as float64, on the CPU, normalised to the last digit.

    Raises:
        ValueError: If the shape is another, N is 0 or J below 2, a value is not finite, or probabilities do not sum to one.
    """
    log_probs = as_finite_tensor(log_probs, name).detach().double().cpu()
    if log_probs.ndim != 2 or len(log_probs) == 0 or log_probs.shape[-1] < 2:
        raise ValueError(
            f"{name} must have shape (N, J), N data sets and at least 2 models, got {tuple(log_probs.shape)}."
        )
    total = log_probs.logsumexp(-1).exp()
    wrong = (total - 1).abs() > _NORMALISED
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name} must be logs of probabilities that sum to 1, got a sum of {float(total[first]):.6g} at index {first}: "
            "apply log_softmax(-1) to unnormalised ones, log() to probabilities."
        )
    return log_probs.log_softmax(-1)
