"""Training data of sbi's estimators: many simulated experiments, in batches that may run in parallel."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..utils.checks import check_count
from ..utils.parallel import run_seeded
from .base import DesignSimulator
from .rollout import PolicySimulator

__all__ = ["simulate_histories"]


def simulate_histories(
    simulator: DesignSimulator,
    policy: Any,
    horizon: int,
    num_simulations: int,
    *,
    prior: Any = None,
    batch_size: int = 1000,
    seed: int | None = None,
    num_workers: int = 1,
    min_trials: int | None = None,
    show_progress_bars: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draw theta from the prior and simulate one history for each, as sbi's `append_simulations` takes them.

    Each batch has a seed of its own. The numbers are therefore the same whether this process simulates it, others on
    this machine, or the workers of an active `joblib.parallel_config("dask")`. They depend on `batch_size`.

    Args:
        simulator: The experiment; it travels to the workers, built from lambdas or not.
        policy: Policy, or any callable history -> design.
        horizon: Number T of trials.
        num_simulations: Number N of experiments.
        prior: Distribution of theta (its `sample` is all that is needed); the simulator's own if None.
        batch_size: Experiments simulated at a time; the last batch may be smaller.
        seed: Seed; the global generator if None.
        num_workers: Processes; see `run_seeded`.
        min_trials: As in `PolicySimulator`: histories end after a random number of trials, at least this many.
        show_progress_bars: Whether to show progress.

    Returns:
        theta (N, P) and x (N, T, D + O + 1), float32.

    Raises:
        ValueError: If a number is out of range, or theta or a history is not finite.

    Example:
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import LocationFinding
        >>> simulator = LocationFinding()
        >>> theta, x = simulate_histories(simulator, RandomPolicy(simulator), 5, 200, batch_size=64, seed=0)
        >>> theta.shape, x.shape
        (torch.Size([200, 2]), torch.Size([200, 5, 4]))
    """
    total, size = check_count(num_simulations, "num_simulations"), check_count(batch_size, "batch_size")
    simulate = partial(
        _simulate_batch,
        PolicySimulator(simulator, policy, horizon, min_trials),
        simulator.prior if prior is None else prior,
    )
    sizes = [min(size, total - start) for start in range(0, total, size)]
    batches = run_seeded(
        simulate, sizes, seed, num_workers, description="simulations", show_progress_bars=show_progress_bars
    )
    theta, x = zip(*batches, strict=True)
    return torch.cat(theta), torch.cat(x)


def _simulate_batch(simulate: PolicySimulator, prior: Any, num: int) -> tuple[Tensor, Tensor]:
    theta = prior.sample((num,))
    return theta.float(), simulate(theta).float()
