"""Scores of how rare summaries are among simulated ones, and their conformal p-values; `typicality` says which and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Score", "half_of_each", "rank", "score_summaries", "whitening"]

_CELLS_AT_A_TIME = 2**23  # distances in memory at once
_FLOOR = 1e-8  # of the largest variance: directions in which simulated summaries do not vary

Score = Literal["neighbours", "gaussian"]


def half_of_each(index: Tensor) -> Tensor:
    """Mask (M,) of a random half of each model's simulations."""
    fit = torch.zeros(len(index), dtype=torch.bool)
    for j in index.unique().tolist():
        places = (index == j).nonzero().squeeze(-1)
        fit[places[torch.randperm(len(places))[: len(places) // 2]]] = True
    return fit


def score_summaries(
    pairs: list[tuple[Tensor, Tensor]], index: Tensor, fit: Tensor, num_models: int, score: Score, num_neighbors: int
) -> tuple[Tensor, Tensor, Tensor]:
    """T of the observed sets (B,) and of those held out (|H|,), means over nets; p-values by model (B, J)."""
    observed, held_out, own = [], [], [[] for _ in range(num_models)]
    for summary, reference in pairs:
        by_model = [_fit(reference[fit & (index == j)], score, num_neighbors) for j in range(num_models)]
        if score == "gaussian":
            shares = torch.bincount(index[fit], minlength=num_models).double().log() - fit.double().sum().log()
            overall = _mixture(by_model, shares)
        else:
            overall = _fit(reference[fit], score, num_neighbors)
        observed.append(overall(summary))
        held_out.append(overall(reference[~fit]))
        for j, of_model in enumerate(by_model):
            own[j].append((of_model(summary), of_model(reference[~fit & (index == j)])))
    ranks = [rank(*(torch.stack(part).mean(0) for part in zip(*scores, strict=True))) for scores in own]
    return torch.stack(observed).mean(0), torch.stack(held_out).mean(0), torch.stack(ranks, -1)


def rank(observed: Tensor, held_out: Tensor) -> Tensor:
    """(1 + #{held out ≥ observed}) / (1 + |H|), (B,)."""
    below = torch.searchsorted(held_out.sort().values, observed)
    return (1 + len(held_out) - below).double() / (1 + len(held_out))


def whitening(reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (S,), matrix (S, S) and log determinant of the covariance, of a map to unit covariance.

    Directions without variance get a small one, so that data that move there, as no simulated ones do, stand out.
    """
    mean = reference.mean(0)
    values, vectors = torch.linalg.eigh((reference - mean).T @ (reference - mean) / len(reference))
    values = values.clamp_min(_FLOOR * float(values.max().clamp_min(torch.finfo(torch.float64).tiny)))
    return mean, vectors * values.rsqrt(), values.log().sum()


def _fit(reference: Tensor, score: Score, num_neighbors: int) -> Callable[[Tensor], Tensor]:
    """T: (n, S) → (n,), −log density up to a constant, fitted to simulated summaries (m, S)."""
    mean, matrix, log_det = whitening(reference)
    if score == "gaussian":
        return lambda s: 0.5 * (((s - mean) @ matrix).square().sum(-1) + log_det)
    white = (reference - mean) @ matrix

    def by_neighbours(s: Tensor) -> Tensor:
        chunks = ((s - mean) @ matrix).split(max(1, _CELLS_AT_A_TIME // len(white)))
        nearest = torch.cat([torch.cdist(c, white).kthvalue(num_neighbors, dim=-1).values for c in chunks])
        return s.shape[-1] * nearest.clamp_min(torch.finfo(torch.float64).tiny).log()

    return by_neighbours


def _mixture(parts: list[Callable[[Tensor], Tensor]], log_shares: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda s: -(log_shares - torch.stack([part(s) for part in parts], -1)).logsumexp(-1)
