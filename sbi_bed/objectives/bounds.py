"""Both contrastive bounds from the same draws, with standard errors that are honest about shared contrastive samples.

Rollouts come in blocks, each with contrastive samples of its own. Within a block errors are correlated, so standard
errors are taken over blocks. More contrastive samples only continue the running sums: nothing is thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..simulators.base import DesignSimulator
from ..simulators.rollout import rollout
from .contrastive import log_likelihood_of_history, log_sum_likelihood, snmc, spce

__all__ = ["InformationGain", "estimate_bounds", "sampler_of"]

_NUM_BLOCKS = 64


@dataclass(frozen=True)
class InformationGain:
    """Bounds on an expected information gain, in nats.

    Attributes:
        lower: sPCE lower bound.
        upper: sNMC upper bound.
        lower_stderr: Standard error of `lower`.
        upper_stderr: Standard error of `upper`.
        num_contrastive: Contrastive samples behind both, for each rollout.
        num_rollouts: Simulated experiments behind both.
        lower_samples: The lower bound of each rollout, (num_rollouts,).
        upper_samples: The upper bound of each rollout, (num_rollouts,).
    """

    lower: float
    upper: float
    lower_stderr: float
    upper_stderr: float
    num_contrastive: int
    num_rollouts: int
    lower_samples: Tensor
    upper_samples: Tensor

    def __str__(self) -> str:
        return (
            f"{self.lower:.3f} ± {self.lower_stderr:.3f} ≤ EIG ≤ {self.upper:.3f} ± {self.upper_stderr:.3f} nats "
            f"(L = {self.num_contrastive:,}, {self.num_rollouts} rollouts)"
        )


def sampler_of(distribution: Any) -> Callable[[int], Tensor]:
    """num -> theta (num, P), from a distribution, a callable, or draws (N, P) of which fresh ones are chosen."""
    if isinstance(distribution, Tensor):
        if distribution.ndim != 2 or len(distribution) == 0:
            raise ValueError(f"draws of theta must have shape (N, P), N > 0, got {tuple(distribution.shape)}.")
        return lambda num: distribution[torch.randint(len(distribution), (num,))]
    if hasattr(distribution, "sample"):
        return lambda num: distribution.sample((num,))
    if not callable(distribution):
        raise TypeError(
            f"prior must be a distribution, draws (N, P), or a callable num -> theta, got {distribution!r}."
        )
    return distribution  # pyright: ignore[reportReturnType]


@torch.no_grad()
def estimate_bounds(
    simulator: DesignSimulator,
    policy: Any,
    num_trials: int,
    num_rollouts: int,
    num_contrastive: int,
    *,
    sample_theta: Callable[[int], Tensor],
    sample_contrastive: Callable[[int], Tensor] | None = None,
    history: Tensor | None = None,
    max_gap: float | None = None,
    max_contrastive: int = 10**7,
    show_progress_bars: bool = False,
) -> InformationGain:
    """Both bounds for `num_trials` trials after an optional history; see `expected_information_gain` for the rest."""
    sample_contrastive = sample_theta if sample_contrastive is None else sample_contrastive
    theta = sample_theta(num_rollouts)
    designs, outcomes = rollout(simulator, policy, theta, num_trials, history)
    log_likelihood = log_likelihood_of_history(simulator, theta, designs, outcomes).sum(-1)
    blocks = torch.arange(num_rollouts).tensor_split(min(_NUM_BLOCKS, num_rollouts))
    log_sum = torch.full_like(log_likelihood, -torch.inf)
    done, target = 0, num_contrastive
    while True:
        for block in tqdm(blocks, desc=f"bounds, L = {target:,}", disable=not show_progress_bars, leave=False):
            for size in _portions(target - done):
                more = log_sum_likelihood(simulator, sample_contrastive(size), designs[block], outcomes[block])
                log_sum[block] = torch.logaddexp(log_sum[block], more)
        done = target
        lower, upper = spce(log_likelihood, log_sum, done), snmc(log_likelihood, log_sum, done)
        if max_gap is None or (upper - lower).mean() <= max_gap or done >= max_contrastive:
            break
        target = min(2 * done, max_contrastive)
    return InformationGain(
        float(lower.mean()),
        float(upper.mean()),
        _stderr_over_blocks(lower, blocks),
        _stderr_over_blocks(upper, blocks),
        done,
        num_rollouts,
        lower,
        upper,
    )


def _portions(total: int, size: int = 100_000) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def _stderr_over_blocks(values: Tensor, blocks: tuple[Tensor, ...]) -> float:
    """Standard error of the mean of `values` (N,) that are independent between blocks only."""
    if len(blocks) < 2:
        return math.nan
    errors = torch.stack([(values[block] - values.mean()).sum() for block in blocks])
    return float((errors.square().sum() * len(blocks) / (len(blocks) - 1)).sqrt() / len(values))
