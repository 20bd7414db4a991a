r"""Importance weights with a smoothed tail, and their Pareto k̂ (Vehtari et al. 2024, JMLR 25).

Of S weights the largest min(S / 5, 3 √S) are replaced by quantiles of a generalised Pareto distribution that is fitted to
them; its shape is k̂. Means over weights are reliable if k̂ < min(1 − 1/log₁₀ S, 0.7).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["largest_pareto_k", "smoothed_weights", "weighted_moments", "weighted_quantiles"]

_FEWEST = 5  # weights in a tail
_ROUNDING = 1e-4  # of weights of densities in float32, relative to the largest


def largest_pareto_k(num_samples: int) -> float:
    """Largest k̂ with which means over S weights are reliable, min(1 − 1/log₁₀ S, 0.7)."""
    return min(1 - 1 / math.log10(num_samples), 0.7)


def smoothed_weights(log_weights: Tensor) -> tuple[Tensor, float]:
    """Normalised weights (S,) with a smoothed tail, and k̂; −∞ if the largest weights are equal, ∞ if few are all there is.

    Args:
        log_weights: Logarithms of weights up to a constant, (S,); −∞ for a weight of 0.

    Returns:
        Weights that add up to 1, float64, and k̂; ∞ if fewer than five weights are positive.
    """
    from sbi.samplers.importance.importance_sampling import gpdfit

    log_weights = log_weights.detach().double().cpu()
    if int(torch.isfinite(log_weights).sum()) < _FEWEST:
        return torch.full_like(log_weights, 1 / len(log_weights)), math.inf
    log_weights = log_weights - log_weights.max()
    num = math.ceil(min(len(log_weights) / 5, 3 * math.sqrt(len(log_weights))))
    order = log_weights.argsort()
    tail, cutoff = order[-num:], log_weights[order[-num - 1]].clamp_min(math.log(torch.finfo(torch.float64).tiny))
    tail = tail[log_weights[tail] > cutoff]
    excess = log_weights[tail].exp() - cutoff.exp()
    if len(tail) < _FEWEST or float(excess[-1]) < _ROUNDING:
        return log_weights.softmax(-1), -math.inf
    shape, scale = (float(value) for value in gpdfit(excess))
    if not (math.isfinite(shape) and 0 < scale < math.inf):  # a few weights are all there is
        return log_weights.softmax(-1), math.inf
    levels = (torch.arange(len(tail), dtype=torch.float64) + 0.5) / len(tail)
    quantiles = scale * torch.expm1(-shape * torch.log1p(-levels)) / shape if shape else -scale * torch.log1p(-levels)
    smoothed = log_weights.clone()
    smoothed[tail] = (quantiles + cutoff.exp()).log().clamp_max(0.0)
    return smoothed.softmax(-1), shape


def weighted_moments(theta: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (P,) of draws (S, P) with weights (S,) that add up to 1."""
    mean = weights @ theta
    return mean, (weights @ (theta - mean).square()).clamp_min(0).sqrt()


def weighted_quantiles(theta: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    """Quantiles (Q, P) of draws (S, P) with weights (S,) that add up to 1."""
    ordered, order = theta.sort(0)
    cumulative = weights[order].cumsum(0).T.contiguous()
    place = torch.searchsorted(cumulative, levels.to(cumulative).expand(theta.shape[1], -1).contiguous())
    return ordered.gather(0, place.clamp_max(len(theta) - 1).T)
