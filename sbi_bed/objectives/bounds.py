"""Both contrastive bounds from the same draws, with standard errors that are honest about shared contrastive samples.

Rollouts come in blocks, each with contrastive samples of its own. Errors are correlated within a block, so standard errors
are taken over blocks. More contrastive samples only continue the running sums.

The argument `add` of `accumulate_bounds` says where contrastive samples come from: here from the prior, in
`diagnostics/design/posterior_bounds.py` from a proposal adapted to each history.
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
from ..simulators.experiments import Experiments
from ..simulators.rollout import rollout
from .contrastive import log_likelihood_of_history, log_sum_likelihood, snmc, spce
from .targets import Target

__all__ = [
    "NUM_BLOCKS",
    "InformationGain",
    "accumulate_bounds",
    "blocks_of",
    "check_rollouts",
    "estimate_bounds",
    "estimate_target_bounds",
    "stderr_over_blocks",
]

NUM_BLOCKS = 64


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
        effective_sample_sizes: With a proposal, the independent posterior draws that each rollout's contrastive samples
            are worth, (num_rollouts,). Bounds hold however few, but are then loose.
    """

    lower: float
    upper: float
    lower_stderr: float
    upper_stderr: float
    num_contrastive: int
    num_rollouts: int
    lower_samples: Tensor
    upper_samples: Tensor
    effective_sample_sizes: Tensor | None = None

    def __str__(self) -> str:
        sizes = self.effective_sample_sizes
        worth = "" if sizes is None else f", worth {float(sizes.median()):,.0f} in the median"
        if math.isinf(self.upper):
            return (
                f"{self.lower:.3f} ± {self.lower_stderr:.3f} ≤ EIG, without an upper bound "
                f"(L = {self.num_contrastive:,}{worth}, {self.num_rollouts} rollouts)"
            )
        return (
            f"{self.lower:.3f} ± {self.lower_stderr:.3f} ≤ EIG ≤ {self.upper:.3f} ± {self.upper_stderr:.3f} nats "
            f"(L = {self.num_contrastive:,}{worth}, {self.num_rollouts} rollouts)"
        )


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
    truth: DesignSimulator | None = None,
    max_gap: float | None = None,
    max_contrastive: int = 10**7,
    compile: bool = False,
    show_progress_bars: bool = False,
) -> InformationGain:
    """Both bounds for `num_trials` trials after an optional history; see `expected_information_gain` for the rest.

    Example:
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import LocationFinding
        >>> from sbi_bed.simulators.experiments import sampler_of
        >>> simulator = LocationFinding()
        >>> sample = sampler_of(simulator.prior)
        >>> gain = estimate_bounds(simulator, RandomPolicy(simulator), 3, 64, 500, sample_theta=sample)
        >>> gain.lower <= gain.upper and gain.num_contrastive == 500
        True
    """
    sample_contrastive = sample_theta if sample_contrastive is None else sample_contrastive
    theta = sample_theta(num_rollouts)
    designs, outcomes = rollout(truth or simulator, policy, theta, num_trials, history)
    log_likelihood = check_rollouts(outcomes, log_likelihood_of_history(simulator, theta, designs, outcomes)).sum(-1)

    def add(block: Tensor, size: int) -> Tensor:
        return log_sum_likelihood(simulator, sample_contrastive(size), designs[block], outcomes[block], compile=compile)

    return accumulate_bounds(
        log_likelihood,
        log_likelihood,
        add,
        blocks_of(num_rollouts),
        num_contrastive,
        max_gap=max_gap,
        max_contrastive=max_contrastive,
        show_progress_bars=show_progress_bars,
    )


@torch.no_grad()
def estimate_target_bounds(
    experiments: Experiments, policy: Any, target: Target, num_rollouts: int, num_contrastive: int
) -> InformationGain:
    """Both bounds on the gain about a target; blocks of rollouts have contrastive samples of their own, as above.

    Args:
        experiments: What is simulated, with the likelihood that is contrasted.
        policy: Policy, or any callable history -> design.
        target: Some parameters, or outcomes to be predicted.
        num_rollouts: Simulated experiments.
        num_contrastive: Contrastive samples L of each.
    """
    target.check(experiments)
    blocks = blocks_of(num_rollouts)
    lower, upper = torch.zeros(2, num_rollouts).unbind()
    for block in blocks:
        batch = experiments.run(policy, len(block))
        check_rollouts(
            batch.trials.outcomes, log_likelihood_of_history(experiments.simulator, batch.theta, *batch.trials)
        )
        contrastive = experiments.sample_contrastive(batch, num_contrastive)
        lower[block] = target.bounds(experiments, batch, contrastive)[:, -1].to(lower)
        upper[block] = target.bounds(experiments, batch, contrastive, upper=True)[:, -1].to(upper)
    errors = stderr_over_blocks(lower, blocks), stderr_over_blocks(upper, blocks)
    return InformationGain(
        float(lower.mean()), float(upper.mean()), *errors, num_contrastive, num_rollouts, lower, upper
    )


def blocks_of(num_rollouts: int) -> tuple[Tensor, ...]:
    """Indices of rollouts in blocks, each with contrastive samples of its own."""
    return torch.arange(num_rollouts).tensor_split(min(NUM_BLOCKS, num_rollouts))


def check_rollouts(outcomes: Tensor, log_likelihood: Tensor) -> Tensor:
    """Return log-likelihoods (B, T) of simulated trials, all finite, with outcomes (B, T, O).

    Raises:
        ValueError: If an outcome or a log-likelihood is not finite; it names the first rollout and trial.
    """
    for name, value in (("the simulator's outcome", outcomes), ("log_likelihood", log_likelihood)):
        bad = ~torch.isfinite(value)
        if bad.any():
            index = tuple(bad.nonzero()[0].tolist())
            raise ValueError(
                f"{name} is {value[index].item()} in rollout {index[0]}, trial {index[1]}; it must be finite for what the "
                "simulator itself draws."
            )
    return log_likelihood


def accumulate_bounds(
    log_likelihood: Tensor,
    log_own: Tensor,
    add: Callable[[Tensor, int], Tensor],
    blocks: tuple[Tensor, ...],
    num_contrastive: int,
    *,
    max_gap: float | None = None,
    max_contrastive: int = 10**7,
    show_progress_bars: bool = False,
) -> InformationGain:
    """Both bounds from running sums of weighted likelihoods, w(θ) p(h | θ).

    Args:
        log_likelihood: log p(h | θ_0) of each rollout, (num_rollouts,).
        log_own: log w(θ_0) p(h | θ_0), (num_rollouts,).
        add: (block, size) -> log Σ_l w(θ_l) p(h | θ_l) over `size` fresh θ_l, for the rollouts in `block`, (len(block),).
        blocks: Indices of rollouts; those of one block may share their θ_l.
        num_contrastive: θ_l for each rollout.
        max_gap: Double their number until upper − lower is at most this.
        max_contrastive: Largest number that `max_gap` may lead to.
        show_progress_bars: Whether to show progress.
    """
    log_sum = torch.full_like(log_own, -torch.inf)
    done, target = 0, num_contrastive
    while True:
        for block in tqdm(blocks, desc=f"bounds, L = {target:,}", disable=not show_progress_bars, leave=False):
            for size in _portions(target - done):
                log_sum[block] = torch.logaddexp(log_sum[block], add(block, size))
        done = target
        if not bool((log_sum < torch.inf).all()):
            bad = int((~(log_sum < torch.inf)).nonzero()[0])
            raise ValueError(
                f"the log_likelihood of rollout {bad} is NaN or infinite at some contrastive theta: look at log_likelihood "
                "where the prior allows theta but the outcome is unlikely."
            )
        lower = spce(log_own, log_sum, done) + (log_likelihood - log_own)
        upper = snmc(log_likelihood, log_sum, done)
        if max_gap is None or (upper - lower).mean() <= max_gap or done >= max_contrastive:
            break
        target = min(2 * done, max_contrastive)
    return InformationGain(
        float(lower.mean()),
        float(upper.mean()),
        stderr_over_blocks(lower, blocks),
        stderr_over_blocks(upper, blocks),
        done,
        len(lower),
        lower,
        upper,
    )


def _portions(total: int, size: int = 100_000) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def stderr_over_blocks(values: Tensor, blocks: tuple[Tensor, ...]) -> float:
    """Standard error of the mean of `values` (N,) that are independent between blocks only."""
    if len(blocks) < 2:
        return math.nan
    errors = torch.stack([(values[block] - values.mean()).sum() for block in blocks])
    return float((errors.square().sum() * len(blocks) / (len(blocks) - 1)).sqrt() / len(values))
